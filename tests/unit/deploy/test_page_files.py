import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from flowers.deploy.page_files import EXPORT_PAGE, SERVER_PAGE, read_page
from tests.browser import FACTS, Chromium, StandIn, open_chromium, requests_of_pages, serve_stand_in

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_page_differs_in_its_engine_only():
    server, export = read_page(SERVER_PAGE), read_page(EXPORT_PAGE)
    assert set(server) <= set(export)
    assert [path for path in server if server[path] != export[path]] == ["static/engine.js"]


def test_page_names_no_other_origin():
    files = {path: content.decode() for path, content in (read_page(SERVER_PAGE) | read_page(EXPORT_PAGE)).items()}
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', files["index.html"])
    assert policy is not None
    directives = dict(directive.split(" ", 1) for directive in policy[1].split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self' 'wasm-unsafe-eval'"
    allowed = {"'none'", "'self'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert {source for sources in directives.values() for source in sources.split()} <= allowed
    for text in (*files.values(), read_page(SERVER_PAGE)["static/engine.js"].decode()):
        text = text.replace("http://localhost:8000", "")  # in a message
        assert not re.search(r"(https?:)?//\w+\.", text)
        assert "http:" not in text


def test_page_shows_names_as_text_only():
    for page in (read_page(SERVER_PAGE), read_page(EXPORT_PAGE)):
        markup = page.pop("index.html").decode()
        assert not re.search(r"<script>|<script [^>]*>[^<]|\son\w+=|style=|javascript:", markup)
        script = b"".join(page.values()).decode()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|DOMParser", script
        )


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with open_chromium(tmp_path_factory.mktemp("downloads")) as chromium:
        yield chromium


@pytest.fixture(params=["server", "onnx"])
def page(request: pytest.FixtureRequest, chromium: Chromium, tmp_path: Path) -> Iterator[StandIn]:
    """The page, which is open in the browser."""
    with serve_stand_in(request.param, tmp_path) as server:
        chromium.driver.get(server.address)
        yield server


@pytest.fixture
def server_page(chromium: Chromium, tmp_path: Path) -> Iterator[StandIn]:
    with serve_stand_in("server", tmp_path) as server:
        chromium.driver.get(server.address)
        yield server


def paint(path: Path, color: tuple[int, int, int] = RED) -> Path:
    Image.new("RGB", (40, 30), color).save(path)
    return path


def twenty_photos(folder: Path) -> list[Path]:
    """Paint photos of all classes, some of which are rejected."""
    return [paint(folder / f"{number}.png", (12 * number, 240 - 12 * number, 7 * number)) for number in range(20)]


def test_page_answers_in_a_browser_and_survives_bad_files(chromium: Chromium, page: StandIn, tmp_path: Path):
    photos = {"=1+1.png": RED, "<b>green.png": GREEN, "blue.png": BLUE}
    for name, color in photos.items():
        paint(tmp_path / name, color)
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "empty.jpg").touch()
    chromium.choose(tmp_path / "<b>green.png")
    chromium.wait_for_status("=1+1, 100.0 %.")
    assert chromium.text("bars").split("\n")[:2] == ["=1+1", "100.0 %"]
    chromium.choose(*(tmp_path / name for name in (*photos, "text.jpg", "empty.jpg")))
    chromium.wait_for_status("6 photos: 4 classified, 2 failed.")
    assert "not a JPEG" in chromium.text("rows")
    assert "empty" in chromium.text("rows")
    assert "none of these" in chromium.text("rows")
    assert "\\u202e" in chromium.text("about")
    assert not chromium.driver.find_elements("css selector", "img[src=x], td b")
    rows = list(csv.reader(chromium.saved_csv().splitlines()))
    columns = ["strangeness", "none_of_these", "abstain", "reason"]  # those of flowers.predict
    assert rows[0] == ["path", "class", "probability", *(f"probability_{name}" for name in FACTS["classes"]), *columns]
    assert rows[2][:3] == ["'=1+1.png", FACTS["classes"][0], "1.000000"]
    assert rows[4][7:9] == ["true", "false"]
    assert rows[6] == ["empty.jpg", "", "", "", "", "", "", "false", "true", "empty"]


def test_page_on_the_device_names_what_is_not_decoded(chromium: Chromium, tmp_path: Path):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    (tmp_path / "large.png").write_bytes(header + bytes(40))
    Image.new("RGB", (40, 30), RED).save(tmp_path / "red.tiff")
    with serve_stand_in("onnx", tmp_path) as server:
        chromium.driver.get(server.address)
        chromium.choose(*(tmp_path / name for name in ("photo.heic", "large.png", "red.tiff")))
        chromium.wait_for_status("3 photos: 0 classified, 3 failed.")
        assert "20000 x 10000 pixels, over the limit of 89,478,485" in chromium.text("rows")
        assert "HEIC is not supported" in chromium.text("rows")
        assert "TIFF is not supported" in chromium.text("rows")
        # The program in the place of the network asks another port. The policy of the page holds for the worker too.
        refused = [
            entry["message"] for entry in chromium.driver.get_log("browser") if "127.0.0.1:9" in entry["message"]
        ]
        assert any("Content Security Policy" in message for message in refused)


def test_page_gives_the_same_answers_with_both_engines_and_asks_no_other_origin(tmp_path: Path):
    photos = twenty_photos(tmp_path)
    (tmp_path / "text.jpg").write_text("no photo")
    answers = {}
    for engine in ("server", "onnx"):
        log = tmp_path / f"{engine}.json"
        with (
            serve_stand_in(engine, tmp_path / engine) as server,
            open_chromium(tmp_path, f"--log-net-log={log}") as chromium,
        ):
            chromium.driver.get(server.address)
            chromium.choose(*photos, tmp_path / "text.jpg")
            chromium.wait_for_status("21 photos: 20 classified, 1 failed.")
            answers[engine] = [row[:9] for row in csv.reader(chromium.saved_csv().splitlines())]
        asked = requests_of_pages(log)
        assert any(url.endswith("static/page.js") for url in asked)
        assert [url for url in asked if not url.startswith(server.address)] == []
    assert answers["server"] == answers["onnx"]
    assert [row[0] for row in answers["server"][1:]] == [*(path.name for path in photos), "text.jpg"]
    assert len({row[1] for row in answers["server"][1:-1]}) == len(FACTS["classes"]) - 1
    assert {row[7] for row in answers["server"][1:-1]} == {"true", "false"}


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_window(chromium: Chromium, page: StandIn, tmp_path: Path, width: int):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    chromium.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        long = paint(tmp_path / f"{'long' * 40}.png")
        chromium.choose(long, long)
        chromium.wait_for_status("2 photos")
        if (explain := chromium.driver.find_element("id", "explain")).is_displayed():
            explain.click()
            chromium.wait_for_status("The heat map is below the photo.")
        inner, needed = chromium.driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert inner == width
        assert needed <= inner
    finally:
        chromium.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_takes_what_is_pasted_and_dropped(chromium: Chromium, page: StandIn):
    transfer = """
        const image = await new Promise((resolve) => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 30 });
            const context = canvas.getContext("2d");
            context.fillStyle = "red";
            context.fillRect(0, 0, 40, 30);
            canvas.toBlob(resolve);
        });
        const data = new DataTransfer();
        data.items.add(new File([image], "image.png", { type: "image/png" }));
    """
    paste = 'document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));'
    chromium.driver.execute_script(transfer + paste)
    chromium.wait_for_status("<img src=x onerror=alert(1)>, 100.0 %.")
    drop = 'document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));'
    chromium.driver.execute_script(transfer + drop)
    chromium.wait_for_status("2 photos: 2 classified, 0 failed.")


def test_page_works_with_the_keyboard_alone(chromium: Chromium, page: StandIn, tmp_path: Path):
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    actions = pytest.importorskip("selenium.webdriver").ActionChains

    def press(*pressed: str) -> str:
        """Press keys; return what has the focus then."""
        actions(chromium.driver).send_keys(*pressed).perform()
        focused = chromium.driver.switch_to.active_element
        return str(focused.get_attribute("id") or focused.text)

    assert press(keys.TAB) == "choose"
    chromium.choose(paint(tmp_path / "red.png"), paint(tmp_path / "green.png", GREEN))  # in the dialog of the system
    chromium.wait_for_status("2 photos: 2 classified, 0 failed.")
    if chromium.driver.find_element("id", "explain").is_displayed():
        assert press(keys.TAB) == "explain"
        press(keys.ENTER)
        chromium.wait_for_status("The heat map is below the photo.")
        assert press(keys.SPACE) == "explain"
        assert not chromium.driver.find_element("id", "heat").is_displayed()
    assert [press(keys.TAB) for _ in range(3)] == ["save", "clear", "red.png"]
    press(keys.ENTER)
    assert chromium.text("status") == "<img src=x onerror=alert(1)>, 100.0 %."
    actions(chromium.driver).key_down(keys.SHIFT).send_keys(keys.TAB).key_up(keys.SHIFT).perform()
    assert press(keys.ENTER) == "choose"
    assert chromium.text("status") == "Ready."
    assert not chromium.driver.find_element("id", "answers").is_displayed()


def test_page_shows_the_heat_map_of_a_photo_that_has_no_preview(
    chromium: Chromium, server_page: StandIn, tmp_path: Path
):
    Image.new("RGB", (40, 30), RED).save(tmp_path / "red.tiff")
    chromium.choose(tmp_path / "red.tiff")
    chromium.wait_for_status("<img src=x onerror=alert(1)>, 100.0 %.")
    assert not chromium.driver.find_element("id", "preview").is_displayed()
    chromium.click("explain")
    chromium.wait_for_status("The heat map is below the photo.")
    heat_map = chromium.driver.find_element("id", "heat")
    chromium.wait_for(lambda: heat_map.get_property("naturalWidth") == 90)
    assert heat_map.get_attribute("alt") == "red.tiff, and its heat map"


def test_page_is_not_sure_below_the_confidence(chromium: Chromium, server_page: StandIn, tmp_path: Path):
    server_page.confidence = 0.9
    chromium.driver.refresh()
    chromium.choose(paint(tmp_path / "mixed.png", (204, 51, 0)), paint(tmp_path / "red.png"))
    chromium.wait_for_status("2 photos: 2 classified, 0 failed.")
    assert "Below a probability of 90.0 %, it says “not sure”." in chromium.text("about")
    assert "not sure 80.0 %" in chromium.text("rows").replace("\n", " ")
    rows = list(csv.reader(chromium.saved_csv().splitlines()))
    assert [(row[1], row[8]) for row in rows[1:]] == [(FACTS["classes"][0], "true"), (FACTS["classes"][0], "false")]


def test_page_takes_the_token_from_its_address_or_asks_for_it(chromium: Chromium, server_page: StandIn, tmp_path: Path):
    server_page.token = "right%2B+"
    chromium.driver.refresh()
    chromium.wait_for_status("This server needs its token.")
    chromium.driver.find_element("id", "token").send_keys("wrong\n")
    chromium.wait_for_status("The token is not the one of this server.")
    chromium.choose(paint(tmp_path / "red.png"))  # waits
    chromium.driver.find_element("id", "token").send_keys("right%2B+\n")
    chromium.wait_for_status("100.0 %.")
    assert not chromium.driver.find_element("id", "login").is_displayed()
    chromium.driver.refresh()  # it is remembered for this tab
    chromium.wait_for_status("Ready.")
    server_page.token = "other"
    chromium.driver.get("about:blank")
    chromium.driver.get(f"{server_page.address}#token=other")
    chromium.wait_for_status("Ready.")
    assert chromium.driver.current_url == server_page.address


def test_page_tries_again_when_the_server_is_busy(chromium: Chromium, server_page: StandIn, tmp_path: Path):
    server_page.failures += [(503, "0")] * 3
    chromium.choose(paint(tmp_path / "red.png"))
    chromium.wait_for_status("100.0 %.")
    server_page.failures += [(503, "0")] * 6
    chromium.choose(paint(tmp_path / "red.png"))
    chromium.wait_for_status("2 photos: 1 classified, 1 failed.")
    assert "the server is busy: try again later" in chromium.text("rows")
    assert len(server_page.failures) == 2
    server_page.failures[:] = [(413, "0")]
    chromium.choose(paint(tmp_path / "red.png"))
    chromium.wait_for_status("3 photos: 1 classified, 2 failed.")
    assert "busy" in chromium.text("rows").rpartition("red.png")[2]  # the line of the server


def test_page_sends_no_file_over_the_limit_of_the_server(chromium: Chromium, server_page: StandIn, tmp_path: Path):
    (tmp_path / "large.jpg").write_bytes(bytes(1_234_567))
    chromium.choose(tmp_path / "large.jpg")
    chromium.wait_for_status("large.jpg: 1.2 MB, over the limit of 1.0 MB")


def test_page_says_that_the_server_is_gone(chromium: Chromium, server_page: StandIn, tmp_path: Path):
    chromium.wait_for_status("Ready.")
    server_page.shutdown()
    server_page.server_close()
    chromium.choose(*(paint(tmp_path / f"{number}.png") for number in range(10)))
    chromium.wait_for_status("10 photos: 0 classified, 10 failed.")
    assert "the server does not answer: try again later" in chromium.text("rows")


def test_page_says_that_the_model_cannot_be_loaded(chromium: Chromium, tmp_path: Path):
    with serve_stand_in("onnx", tmp_path) as server:
        (tmp_path / "exported" / "web" / "model.onnx").write_bytes(b"other weights")
        chromium.driver.get(server.address)
        message = "The model cannot be loaded: model.onnx: missing, or not the one in settings.json"
        chromium.wait_for_status(message)
        chromium.choose(paint(tmp_path / "red.png"))
        chromium.wait_for_status(message)
        assert not chromium.driver.find_element("id", "progress").is_displayed()
