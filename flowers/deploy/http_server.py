"""An HTTP server that no slow client can hold: uvicorn, with a time for each request and a quick end."""

import asyncio
import ipaddress
import json
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_MAX_CONNECTIONS = 500  # open at once, below the usual limit of 1,024 files
_MAX_OF_CLIENT = 100  # of them: slow connections of one client leave room for others
_STOP_SECONDS = 1.0  # for answers that are on their way when the server stops
_CLOSE_SECONDS = 1.0  # for a client to take the last bytes


class TimedProtocol(H11Protocol):
    """A connection that is closed when the client takes too long to send a request, or to take an answer.

    uvicorn alone has a limit for the time between two requests only. While the server computes, no time runs.
    """

    seconds = 60.0
    max_of_client = _MAX_OF_CLIENT
    network = ""  # of the client
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _is_idle = True  # no byte of the next request has arrived

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time, or refuse one connection too many."""
        super().connection_made(transport)
        self.network = client_network(self.client[0]) if self.client else ""
        of_client = sum(each.network == self.network for each in self.connections if isinstance(each, TimedProtocol))
        if len(self.connections) > _MAX_CONNECTIONS or of_client > self.max_of_client:
            self._refuse(503, "the server is busy: try again in a second", b"retry-after: 1\r\n")
        else:
            self._set_timer(True)

    def data_received(self, data: bytes) -> None:
        """Start the time anew with the first byte of a request, and stop it after the last one."""
        if self._is_idle:
            self._is_idle = False
            self._set_timer(False)
            self._set_timer(True)
        super().data_received(data)
        self._set_timer(self._is_receiving())

    def on_response_complete(self) -> None:
        """Start the time of the next request, of which a part may have arrived already."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.seconds, self.transport.abort)  # unless the client has taken it before
        else:
            self._is_idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
            self._set_timer(self._is_receiving())

    def pause_writing(self) -> None:
        """Start the time in which the client must take a part of the answer."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that time."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all times."""
        self._set_timer(False)
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End the connection, unless an answer is being computed: the server stops."""
        if self._is_receiving():
            self._close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not an HTTP request."""
        self._refuse(400, "this is no HTTP request that the server understands")

    def _is_receiving(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _set_timer(self, runs: bool) -> None:
        if not runs and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif runs and self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._end_slow_request)

    def _end_slow_request(self) -> None:
        if self._is_idle or (self.cycle is not None and self.cycle.response_started and self._is_receiving()):
            self._close()
        else:
            self._refuse(408, f"the request took longer than {self.seconds:g} seconds")

    def _refuse(self, status: int, error: str, headers: bytes = b"") -> None:
        body = json.dumps({"error": error}).encode()
        self.transport.write(
            b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n%b"
            % (status, len(body), headers, body)
        )
        self._close()

    def _close(self) -> None:
        self.transport.close()  # which waits until the client has taken what was written
        self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)


def client_network(address: str) -> str:
    """Return what stands for the client in the count of its connections: of IPv6, a client has a network of its own."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else ip
    return str(mapped or ipaddress.ip_network((int(ip) >> 64 << 64, 64)))


class Server(uvicorn.Server):
    """A server that stops soon after SIGINT or SIGTERM, whatever its clients do.

    Args:
        config: Of uvicorn.
        on_ready: Called when the server listens.
        on_stop: Called when it is asked to stop.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready, self._on_stop = on_ready, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all requests and connections."""
        self._on_stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals. Unlike in uvicorn they are not raised again: the server has done what they ask for."""
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the next tick, 0.1 seconds at most; a second signal waits for no answer."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of requests that are cut off
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(
    app: Any,
    bound: socket.socket,
    request_seconds: float,
    proxy: bool,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
) -> None:
    """Serve an application until SIGINT or SIGTERM.

    Args:
        app: The ASGI application.
        bound: A socket that has its address.
        request_seconds: A client that takes longer to send a request is cut off.
        proxy: Whether all clients come through a proxy: then their connections are not counted by address.
        on_ready: Called when the server listens.
        on_stop: Called when it is asked to stop: the application ends what it computes.
    """
    limits = {"seconds": request_seconds, "max_of_client": _MAX_CONNECTIONS if proxy else _MAX_OF_CLIENT}
    config = uvicorn.Config(
        app,
        http=type("Protocol", (TimedProtocol,), limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(request_seconds)),
        timeout_graceful_shutdown=_STOP_SECONDS,  # type: ignore[arg-type]
    )
    Server(config, on_ready, on_stop).run([bound])
