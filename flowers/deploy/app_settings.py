"""What `flowers.app` serves, to whom, and how much of it at once: its settings, checked before torch is imported."""

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from flowers.runtime.text import one_line
from flowers.settings.schema.programs import AppSettings

TOKEN_VARIABLE = "FLOWERS_APP_TOKEN"

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what may follow "Bearer" in a header: RFC 6750
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://(.*)")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class ServerSettings(NamedTuple):
    """Who may ask, and how much.

    Attributes:
        name: The name of the run.
        confidence: The probability below which an answer abstains. None: never.
        host: The address to listen on.
        port: The TCP port. 0 takes a free one.
        token: What a client must send. None: nothing.
        allowed_hosts: Names under which the server answers, beside those of this machine. "*.example.com" and "*" are
            patterns.
        proxy: Whether X-Forwarded-Host counts.
        max_pixels: Of an image.
        max_request_bytes: Of the body of a request.
        max_files: Of a request.
        max_in_flight: Requests that are answered at the same time.
        request_seconds: A client that takes longer to send its request, or to take its answer, is cut off.
    """

    name: str = "run"
    confidence: float | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    allowed_hosts: Sequence[str] = ()
    proxy: bool = False
    max_pixels: int = 50_000_000
    max_request_bytes: int = 50_000_000
    max_files: int = 64
    max_in_flight: int = 64
    request_seconds: float = 60.0


def server_settings(settings: AppSettings, environment: Mapping[str, str] = os.environ) -> ServerSettings:
    """Return the settings of the server.

    Args:
        settings: Those of `flowers.app`.
        environment: Where the token is if it is not among them.

    Raises:
        ValueError: Other machines reach the server, and it is not said under which name or with which token.
    """
    host, token = settings.host, settings.token
    if token == "auto":
        token = environment.get(TOKEN_VARIABLE) or None
        if token is None and not is_loopback(host):
            raise ValueError(
                f"host={host}: other machines reach it: give token=SECRET or set ${TOKEN_VARIABLE}, or give token=null "
                "to let everyone in"
            )
    if token is not None and not _TOKEN.fullmatch(token):  # the message does not show it
        raise ValueError("token: expected letters, digits and any of . _ ~ + / -, which a header can hold")
    if not is_loopback(host) and not settings.allowed_hosts:
        raise ValueError(
            f"host={host}: other machines reach it: give allowed_hosts=[NAME], the names and addresses by which they "
            "may ask for it"
        )
    return ServerSettings(
        one_line(Path(str(settings.run)).resolve().name),  # not where it is
        settings.confidence,
        host,
        settings.port,
        token,
        [name.lower() for name in settings.allowed_hosts],
        settings.proxy,
        round(settings.max_megapixels * 1e6),
        int(settings.max_request_mb * 1e6),
        settings.max_files,
        settings.max_in_flight,
        settings.request_seconds,
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the address but does not listen yet: until then, clients are refused and do not wait.

    Raises:
        ValueError: The address is in use or is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"host={host}: no such address; give one of this machine, such as 0.0.0.0") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        key, advice = (
            ("port", "another port") if error.errno != errno.EADDRNOTAVAIL else ("host", "an address of this machine")
        )
        reason = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise ValueError(f"{key}={port if key == 'port' else host}: {reason}; give {advice}") from error
    return bound


def is_known_host(host: str, allowed_hosts: Sequence[str]) -> bool:
    """Return whether the value of a Host header names this machine, or one of the allowed names, with any port."""
    match = _HOST.fullmatch(host.lower())
    return match is not None and (
        match[1] in _LOCAL_NAMES or any(fnmatchcase(match[1].strip("[]"), pattern) for pattern in allowed_hosts)
    )


def is_own_origin(origin: str, host: str) -> bool:
    """Return whether the value of an Origin header is the server itself, which was asked for as `host`."""
    parts = _ORIGIN.fullmatch(origin.lower())
    if parts is None:
        return False
    asking, asked = _HOST.fullmatch(parts[2]), _HOST.fullmatch(host.lower())
    port = _DEFAULT_PORTS[parts[1]]
    return asking is not None and asked is not None and (asking[1], asking[2] or port) == (asked[1], asked[2] or port)
