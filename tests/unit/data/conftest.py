"""Web servers for tests of remote files."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serve(folder: Path, failures: int = 0) -> Iterator[str]:
    """Serve `folder`; close the connection early for the first `failures` requests."""
    remaining = failures

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def copyfile(self, source: Any, outputfile: Any) -> None:
            nonlocal remaining
            if remaining:
                remaining -= 1
                outputfile.write(source.read(100))
                return
            super().copyfile(source, outputfile)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def web(shards: Path) -> Iterator[str]:
    """The address of the shards on a web server."""
    with serve(shards) as address:
        yield address


@pytest.fixture
def flaky_web(shards: Path) -> Iterator[str]:
    """The address of the shards on a web server whose first response is incomplete."""
    with serve(shards, failures=1) as address:
        yield address
