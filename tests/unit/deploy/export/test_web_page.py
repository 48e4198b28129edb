import csv
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowers.deploy.export.web_page import RUNTIME_FILES, read_web_runtime, write_web_page
from flowers.deploy.page_files import EXPORT_PAGE
from flowers.runtime.files import read_json

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


def package_files(name: str = "onnxruntime-web") -> dict[str, bytes]:
    package = json.dumps({"name": name, "version": "1.2.3"}).encode()
    return {"package.json": package} | {file: RUNTIME.encode() for file in RUNTIME_FILES}


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of a model with hostile class names, with another program in the place of the network."""
    folder = tmp_path / "exported" / "web"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder.parent / "LICENSE.txt").write_text("note")
    write_web_page(folder, FACTS, read_web_runtime(str(write_archive(tmp_path / "ort.tgz", package_files()))))
    return folder


def test_read_web_runtime_reads_an_archive_and_a_folder(tmp_path: Path):
    archive = write_archive(tmp_path / "ort.tgz", package_files())
    for name, content in package_files().items():
        path = tmp_path / "node_modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    runtime = read_web_runtime(str(archive))
    assert runtime == read_web_runtime(str(tmp_path / "node_modules"))
    assert runtime.version == "1.2.3"
    assert set(runtime.files) == set(RUNTIME_FILES.values())


def test_read_web_runtime_says_what_is_wrong(tmp_path: Path):
    (tmp_path / "text.tgz").write_text("no archive")
    content = write_archive(tmp_path / "cut.tgz", package_files()).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(content[: len(content) // 2])
    write_archive(tmp_path / "other.tgz", package_files("left-pad"))
    write_archive(tmp_path / "none.tgz", {"readme": b""})
    write_archive(tmp_path / "old.tgz", {"package.json": package_files()["package.json"]})
    for path, message in (
        (None, r"formats=\[web\] needs onnxruntime-web: run npm pack onnxruntime-web, then give web_runtime="),
        ("gone.tgz", "no such file or folder; npm pack onnxruntime-web"),
        ("text.tgz", "expected the .tgz file that npm pack onnxruntime-web makes"),
        ("cut.tgz", "expected the .tgz file that npm pack onnxruntime-web makes"),
        ("other.tgz", "expected the package onnxruntime-web, found left-pad"),
        ("none.tgz", "found no package.json"),
        (".", "found no package.json"),
        ("old.tgz", r"version 1\.2\.3 of onnxruntime-web has no dist/ort\.wasm\.min\.mjs"),
    ):
        with pytest.raises(ValueError, match=message):
            read_web_runtime(None if path is None else str(tmp_path / path))


def test_read_web_runtime_follows_no_link_in_an_archive(tmp_path: Path):
    path = tmp_path / "ort.tgz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("package/package.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"found no package\.json"):
        read_web_runtime(str(path))


def test_page_is_a_folder_of_static_files(page: Path):
    names = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    runtime = {f"ort/{name}" for name in (*RUNTIME_FILES.values(), "LICENSE", "ThirdPartyNotices.txt")}
    own = {*EXPORT_PAGE, "settings.json", "model.onnx", "LICENSE.txt"}
    assert names == own | runtime
    settings = read_json(page / "settings.json")
    assert settings["classes"] == FACTS["classes"]
    assert settings["threshold"] == 0.5


def test_page_names_no_other_origin(page: Path):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', (page / "index.html").read_text())
    assert policy is not None
    directives = dict(directive.split(" ", 1) for directive in policy[1].split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self' 'wasm-unsafe-eval'"
    allowed = {"'none'", "'self'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert {source for sources in directives.values() for source in sources.split()} <= allowed
    for name in EXPORT_PAGE:
        text = (page / name).read_text().replace("http://localhost:8000", "")  # in a message
        assert not re.search(r"(https?:)?//\w+\.", text)
        assert "http:" not in text


def test_page_shows_names_as_text_only(page: Path):
    markup, script = (
        (page / "index.html").read_text(),
        (page / "static" / "page.js").read_text() + (page / "static" / "worker.js").read_text(),
    )
    assert not re.search(r"<script>|<script [^>]*>[^<]|\son\w+=|style=|javascript:", markup)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|DOMParser", script)
    for name in EXPORT_PAGE:
        assert "alert(1)" not in (page / name).read_text()


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium with the page open, which a server on this machine serves."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if (driver := shutil.which("chromedriver")) is None:
        pytest.skip("needs chromedriver")
    handler = partial(QuietHandler, directory=str(page))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = webdriver.ChromeOptions()
        quiet = ("background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
        for flag in ("--headless", "--no-sandbox", *(f"--disable-{name}" for name in quiet)):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            chromium.get(f"http://127.0.0.1:{server.server_port}/")
            yield chromium
        finally:
            chromium.quit()
            server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_page_answers_in_a_browser_and_survives_bad_files(browser: Any, tmp_path: Path):
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait(browser, 30, 0.05)
    photos = {"=1+1.png": (255, 0, 0), "<b>green.png": (0, 255, 0), "blue.png": (0, 0, 255)}
    for name, color in photos.items():
        Image.new("RGB", (40, 30), color).save(tmp_path / name)
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    (tmp_path / "large.png").write_bytes(header + bytes(40))
    names = [*photos, "text.jpg", "photo.heic", "large.png"]

    def text(identifier: str) -> str:
        return str(browser.find_element("id", identifier).text)

    browser.find_element("id", "choose").send_keys(str(tmp_path / "<b>green.png"))
    wait.until(lambda _: text("status") == "=1+1, 100.0 %.")
    assert text("bars").split("\n")[:2] == ["=1+1", "100.0 %"]
    browser.find_element("id", "choose").send_keys("\n".join(str(tmp_path / name) for name in names))
    wait.until(lambda _: text("status") == "7 photos: 4 classified, 3 not readable.")
    assert "200,000,000" not in text("rows")
    assert "20000 x 10000 pixels, over the limit of 89,478,485" in text("rows")
    assert "HEIC is not supported" in text("rows")
    assert "not a JPEG, PNG, WebP, BMP or GIF image" in text("rows")
    assert "none of these" in text("rows")
    assert "\\u202e" in text("about")
    assert not browser.find_elements("css selector", "img[src=x], td b")
    browser.find_element("id", "save").click()
    wait.until(lambda _: (tmp_path / "answers.csv").is_file())
    rows = list(csv.reader((tmp_path / "answers.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == [
        "path",
        "class",
        "probability",
        FACTS["classes"][0],
        "'=1+1",
        FACTS["classes"][2],
        "strangeness",
        "none_of_these",
        "reason",
    ]
    assert rows[2][:3] == ["'=1+1.png", FACTS["classes"][0], "1.000000"]
    assert rows[4][7] == "true"
    # The program in the place of the network asks another port, and the policy of the page holds for the worker too.
    refused = [entry["message"] for entry in browser.get_log("browser") if "127.0.0.1:9" in entry["message"]]
    assert any("Content Security Policy" in message for message in refused)
