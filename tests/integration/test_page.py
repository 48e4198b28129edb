import csv
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowers.export import main as export
from flowers.predict import main as predict
from tests.browser import QuietFiles, open_chromium, requests_of_pages
from tests.helpers import configuration


@contextmanager
def served_by_the_app(run: Path) -> Iterator[str]:
    """The address of a started app."""
    command = [sys.executable, "-m", "flowers.app", f"run={run}", "port=0", "accelerator=cpu", "precision=32-true"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "FLOWERS_APP_TOKEN": "secret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if found := re.search(r"open (http://127\.0\.0\.1:\d+/)#token=", line):
                    yield f"{found[1]}#token=secret"
                    break
        finally:
            server.terminate()


@contextmanager
def served_as_files(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), QuietFiles.of(folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def answers_of_the_page(address: str, photos: list[Path], downloads: Path) -> list[dict[str, str]]:
    """Classify photos in a browser, ask for the heat map of the last one if there is one, and return the saved rows."""
    log = downloads / "net.json"
    with open_chromium(downloads, f"--log-net-log={log}") as chromium:
        chromium.driver.get(address)
        chromium.choose(*photos)
        chromium.wait_for_status(f"{len(photos)} photos: {len(photos) - 1} classified, 1 failed.")
        chromium.driver.find_elements("css selector", "tbody button")[0].click()
        if chromium.driver.find_element("id", "explain").is_displayed():
            chromium.click("explain")
            chromium.wait_for_status("The heat map is below the photo.")
            heat_map = chromium.driver.find_element("id", "heat")
            chromium.wait_for(lambda: heat_map.get_property("naturalWidth") > heat_map.get_property("naturalHeight"))
        rows = list(csv.DictReader(chromium.saved_csv().splitlines()))
    asked = requests_of_pages(log)
    assert any(url.endswith("static/page.js") for url in asked)
    assert [url for url in asked if not url.startswith((address.partition("#")[0], "blob:", "data:"))] == []
    return rows


@pytest.fixture
def photos(painted: Path, tmp_path: Path) -> list[Path]:
    """Twenty photos and a file that is none."""
    (tmp_path / "text.jpg").write_text("no photo")
    return [*sorted(painted.glob("*/*.jpg"))[::3][:20], tmp_path / "text.jpg"]


@pytest.fixture
def predicted(rejecting: Path, photos: list[Path], tmp_path: Path) -> list[dict[str, str]]:
    """What flowers.predict answers."""
    arguments = [f"run={rejecting}", f"photos=[{','.join(map(str, photos))}]", f"output={tmp_path / 'predicted.csv'}"]
    predict(configuration(*arguments, "accelerator=cpu", "precision=32-true", name="predict"))
    with (tmp_path / "predicted.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_page_of_the_app_answers_as_predict(
    rejecting: Path, photos: list[Path], predicted: list[dict[str, str]], tmp_path: Path
):
    with served_by_the_app(rejecting) as address:
        answers = answers_of_the_page(address, photos, tmp_path)
    for answer, row in zip(answers, predicted, strict=True):
        assert list(answer) == list(row)
        for column in ("class", "none_of_these", "abstain", "reason"):
            assert answer[column] == row[column]
        assert float(answer["probability"] or 0) == pytest.approx(float(row["probability"] or 0), abs=1e-5)


@pytest.mark.slow
def test_exported_page_answers_as_predict(
    rejecting: Path, photos: list[Path], predicted: list[dict[str, str]], tmp_path: Path
):
    if (runtime := os.environ.get("FLOWERS_WEB_RUNTIME")) is None:
        pytest.skip("needs FLOWERS_WEB_RUNTIME=FILE, which npm pack onnxruntime-web writes")
    settings = [f"run={rejecting}", f"output={tmp_path / 'exported'}", "formats=[web]", f"web_runtime={runtime}"]
    export(configuration(*settings, "int8_min_agreement=0.5", "min_rejection_agreement=0.5", name="export"))
    with served_as_files(tmp_path / "exported" / "web") as address:
        answers = answers_of_the_page(address, photos, tmp_path)
    for answer, row in zip(answers, predicted, strict=True):
        assert list(answer) == list(row)
        shares = sorted(float(value or 0) for value in list(row.values())[3:-4])
        if not row["reason"] and shares[-1] - shares[-2] > 0.4:  # 8 bits may move each probability by 0.2
            assert answer["class"] == row["class"]
        assert float(answer["probability"] or 0) == pytest.approx(float(row["probability"] or 0), abs=0.2)
