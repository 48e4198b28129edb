"""Web servers for tests of remote files."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serve(folder: Path, failures: int = 0, endless: str = "") -> Iterator[str]:
    """Serve `folder`.

    Close the connection early for the first `failures` requests. The reply for a name that ends in `endless` has no
    end; without a limit, the client gives up after 100 MB.
    """
    remaining = failures

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            if not endless or not self.path.endswith(endless):
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                for _ in range(100):
                    self.wfile.write(bytes(10**6))
            return None

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


@pytest.fixture
def endless_web(shards: Path) -> Iterator[str]:
    """The address of the shards on a web server whose file train-000000.tar has no end."""
    with serve(shards, endless="train-000000.tar") as address:
        yield address


@pytest.fixture
def hostile_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be changed."""
    return shutil.copytree(shards, tmp_path / "hostile")


@pytest.fixture
def hostile_web(hostile_shards: Path) -> Iterator[str]:
    """The address of `hostile_shards`."""
    with serve(hostile_shards) as address:
        yield address
