"""Chromium without a window, and stand-ins for both engines of the web page, which compute the same sums."""

import http.server
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image, ImageStat

from flowers.deploy.export.web_page import RUNTIME_FILES, WebRuntime, write_web_page
from flowers.deploy.page_files import SERVER_PAGE, read_page

FACTS: dict[str, Any] = {
    "classes": ["<img src=x onerror=alert(1)>", "=1+1", "</script>\u202e"],
    "resize": 256,
    "rejection": {"strangeness_threshold": 0.5},
}

# Stands for onnxruntime-web: the first probability is the mean of red, the second that of green.
RUNTIME = """
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
export class InferenceSession {
  static async create(model) { return new InferenceSession(); }
  async run({ photos: { data, dims } }) {
    const area = dims[2] * dims[3];
    const mean = (start) => data.slice(start, start + area).reduce((sum, each) => sum + each, 0) / area / 255;
    const shares = [mean(0), mean(area), 1 - mean(0) - mean(area)];
    return { probabilities: { data: shares }, strangeness: { data: [mean(2 * area)] } };
  }
}
fetch("http://127.0.0.1:9/elsewhere").catch(() => console.log("refused"));
"""


class Chromium(NamedTuple):
    """A browser, and the folder where it saves files."""

    driver: Any
    downloads: Path

    def text(self, identifier: str) -> str:
        return str(self.driver.find_element("id", identifier).text)

    def click(self, identifier: str) -> None:
        self.driver.find_element("id", identifier).click()

    def choose(self, *files: Path) -> None:
        self.driver.find_element("id", "choose").send_keys("\n".join(map(str, files)))

    def wait_for(self, condition: Callable[[], Any]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 30, 0.05).until(lambda _: condition())

    def wait_for_status(self, text: str) -> None:
        self.wait_for(lambda: text in self.text("status"))

    def saved_csv(self) -> str:
        """Press the button, and return the file."""
        path = self.downloads / "answers.csv"
        path.unlink(missing_ok=True)
        self.click("save")
        self.wait_for(path.is_file)
        return path.read_text(encoding="utf-8")


@contextmanager
def open_chromium(downloads: Path, *flags: str) -> Iterator[Chromium]:
    """Start the browser, or skip the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if (driver := shutil.which("chromedriver")) is None:
        pytest.skip("needs chromedriver")
    options = webdriver.ChromeOptions()
    quiet = ("background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    for flag in ("--headless", "--no-sandbox", *(f"--disable-{name}" for name in quiet), *flags):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield Chromium(chromium, downloads)
    finally:
        chromium.quit()


def requests_of_pages(net_log: Path) -> list[str]:
    """Return the addresses that pages asked for, without what the browser asks for by itself."""
    events = [event.get("params", {}) for event in json.loads(net_log.read_text())["events"]]
    origins = ("http", "null")  # null: of a page on a disk
    return [each["url"] for each in events if each.get("initiator", "").startswith(origins) and "url" in each]


def write_stand_in_page(folder: Path) -> Path:
    """Export the page of a model with hostile class names, with another program in the place of the network."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder.parent / "LICENSE.txt").write_text("note")
    write_web_page(folder, FACTS, WebRuntime("1.2.3", dict.fromkeys(RUNTIME_FILES.values(), RUNTIME.encode())))
    return folder


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder."""

    @classmethod
    def of(cls, folder: Path) -> Any:
        return partial(cls, directory=str(folder))

    def log_message(self, *arguments: object) -> None:
        pass


class StandIn(http.server.ThreadingHTTPServer):
    """A server of a page.

    Attributes:
        token: What a client must give, if anything.
        confidence: Below this probability the server abstains.
        failures: The answers, as status and Retry-After, that requests for a class get before a real one.
    """

    token: str | None = None
    confidence: float | None = None

    def __init__(self, handler: Any) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.failures: list[tuple[int, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _ServerPage(http.server.BaseHTTPRequestHandler):
    """Stands for flowers.app."""

    server: StandIn

    def do_GET(self) -> None:
        name = self.path.removeprefix("/") or "index.html"
        if name in SERVER_PAGE:
            types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
            self._answer(200, types[Path(name).suffix], read_page(SERVER_PAGE)[name])
        elif self._may_ask():
            limits = {"files": 100, "request_bytes": 1_000_000, "pixels": 89_478_485}
            facts = {"classes": FACTS["classes"], "rejects": True, "confidence": self.server.confidence}
            self._answer_json(200, facts | {"explains": True, "limits": limits})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.failures:
            status, pause = self.server.failures.pop(0)
            self._answer_json(status, {"error": "busy"}, {"Retry-After": pause})
        elif self._may_ask():
            try:
                image = Image.open(io.BytesIO(content)).convert("RGB")
            except OSError:
                self._answer_json(200, {"predictions": [{"error": "not a JPEG"}]})
                return
            if self.path == "/explain":
                picture = io.BytesIO()
                Image.new("RGB", (90, 49), "red").save(picture, "JPEG")
                self._answer(200, "image/jpeg", picture.getvalue())
                return
            red, green, blue = (mean / 255 for mean in ImageStat.Stat(image).mean)
            shares = [red, green, 1 - red - green]
            abstains = self.server.confidence is not None and max(shares) < self.server.confidence
            facts = {"probabilities": dict(zip(FACTS["classes"], shares, strict=True)), "strangeness": blue}
            facts |= {"rejected": blue > FACTS["rejection"]["strangeness_threshold"], "abstains": abstains}
            self._answer_json(200, {"predictions": [facts | {"error": None}]})

    def _may_ask(self) -> bool:
        wanted = None if self.server.token is None else f"Bearer {self.server.token}"
        if self.headers["Authorization"] == wanted:
            return True
        self._answer_json(401, {"error": "a token is needed"})
        return False

    def _answer_json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(status, "application/json", json.dumps(content).encode(), headers)

    def _answer(self, status: int, kind: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content))}.items() | (
            headers or {}
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serve_stand_in(engine: str, folder: Path) -> Iterator[StandIn]:
    """Serve the page: with the engine "onnx", which is exported to the folder, or with the engine "server"."""
    handler: Any = _ServerPage
    if engine == "onnx":
        handler = QuietFiles.of(write_stand_in_page(folder / "exported" / "web"))
    with StandIn(handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
