"""The files of the web page: what the server of `flowers.app` and an export with formats=[web] share."""

from collections.abc import Mapping
from pathlib import Path

_FOLDER = Path(__file__).parent / "web"

# Each table: from the path in the address, or in the exported folder, to the file of this package.
_SHARED = {"index.html": "index.html"} | {f"static/{name}": name for name in ("page.css", "page.js", "photo.js")}
EXPORT_PAGE = _SHARED | {"static/engine.js": "onnx_engine.js", "static/worker.js": "worker.js"}
SERVER_PAGE = _SHARED | {"static/engine.js": "server_engine.js"}


def read_page(table: Mapping[str, str]) -> dict[str, bytes]:
    """Return the content of each file of a page, by its path."""
    return {path: (_FOLDER / name).read_bytes() for path, name in table.items()}
