"""Files at an http(s) or S3 address: a lost connection is tried again, then named."""

import functools
import importlib.util
import logging
import os
import time
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_SCHEMES = ("http", "https", "s3")
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20
_LASTING = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError")  # boto3's


class LostError(ValueError):
    """What could not be had from afar, in one line, also where a worker's error comes with its traceback as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().rpartition("\n")[2].removeprefix(f"{__name__}.LostError: "))


def is_remote(address: str | Path) -> bool:
    """Whether it is an address and no path. Raises ValueError for one of an unknown kind or where boto3 is missing."""
    scheme, colon, _ = str(address).partition("://")
    if colon and scheme not in _SCHEMES:
        raise ValueError(f"{address}: wanted a path or an address that starts with {', '.join(_SCHEMES)}")
    if colon and scheme == "s3" and importlib.util.find_spec("boto3") is None:
        raise ValueError(f"{address} needs boto3: pip install 'flowers[shards]'")
    return bool(colon)


def fetch(address: str, to: Path, endpoint: str | None = None, patience: float = 300.0) -> None:
    """Writes the file at `address` to the path `to`, anew after each break.

    Args:
        address: https://…, http://… or s3://bucket/key, with the credentials that boto3 finds.
        to: is left half-written where it fails.
        endpoint: of an S3-compatible server; None for AWS's, or the one in AWS_ENDPOINT_URL.
        patience: seconds after which a lost connection is given up.

    Raises LostError, at once where to try again would be of no use.
    """
    start, pause = time.monotonic(), 0.5
    while True:
        try:
            with _opened(address, endpoint) as source, to.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    file.write(chunk)
                if getattr(source, "length", None):  # what an HTTPResponse still waits for; boto3's raises by itself
                    raise ConnectionError(f"the connection broke off {source.length:,} bytes before the end")
            return
        except Exception as error:  # boto3's have no class in common with those of the standard library
            is_local = isinstance(error, OSError) and error.filename is not None
            if is_local or _is_lasting(error) or time.monotonic() - start + pause > patience:
                raise LostError(f"cannot get {address} ({_reason(error)})") from error
            log.warning("%s: %s; trying again in %.1f s", address, _reason(error), pause)
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def _opened(address: str, endpoint: str | None) -> Any:
    url = urllib.parse.urlsplit(address)
    if url.scheme == "s3":
        return _s3(endpoint, os.getpid()).get_object(Bucket=url.netloc, Key=url.path[1:])["Body"]
    return urllib.request.urlopen(urllib.parse.quote(address, safe=":/?&=%@+~"), timeout=_TIMEOUT)


@functools.lru_cache(maxsize=1)
def _s3(endpoint: str | None, process: int) -> Any:
    """A client of this process: a forked one shall not share its parent's connections."""
    import boto3
    from botocore.config import Config

    once = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT, retries={"total_max_attempts": 1})
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=once)


def _is_lasting(error: Exception) -> bool:
    response = getattr(error, "response", None) or {}
    status = getattr(error, "code", None) or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    return type(error).__name__ in _LASTING or isinstance(error, MemoryError)


def _reason(error: Exception) -> str:
    name = type(error).__name__ if isinstance(error, HTTPException) or not str(error) else ""
    return " ".join(f"{name} {error}".split())
