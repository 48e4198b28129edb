import json
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from flowers.app import main
from flowers.deploy.classifier import Classifier
from flowers.deploy.web_app import answer_uploads
from flowers.evaluation.predictions import load_predictions
from tests.helpers import configuration


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return Classifier.load(trained, "cpu", "32-true")


def test_answer_uploads_returns_probabilities_and_heat_maps(classifier: Classifier, painted: Path):
    files = sorted(map(str, painted.glob("*/*.jpg")))[:3]
    for file, answer in zip(files, answer_uploads(classifier, files, None, 50), strict=True):
        assert (answer.message, answer.abstains) == ("", False)
        assert answer.probabilities == pytest.approx(classifier(file).probabilities, abs=1e-6)
        assert answer.picture is not None
        assert answer.picture.width > answer.picture.height


def test_answer_uploads_does_not_know_below_the_confidence(classifier: Classifier, painted: Path):
    (answer,) = answer_uploads(classifier, [str(painted / "rose" / "00002.jpg")], 1.0, 50)
    assert answer.message.startswith("### I don't know")
    assert answer.abstains


def test_answer_uploads_says_none_of_these(rejecting: Path, painted: Path):
    classifier = Classifier.load(rejecting, "cpu", "32-true", reject=0.9)
    assert classifier.rejection is not None
    strangest = load_predictions(rejecting / "predictions" / "val.csv").paths[
        int(classifier.rejection.val_scores.argmax())
    ]
    (answer,) = answer_uploads(classifier, [str(painted / strangest)], None, 50)
    assert answer.message.startswith("### None of these")
    assert answer.abstains


def test_answer_uploads_says_why_a_file_cannot_be_read(classifier: Classifier, painted: Path, tmp_path: Path):
    (tmp_path / "text.jpg").write_text("not an image")
    good = painted / "rose" / "00002.jpg"
    content = good.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    Image.new("1", (3_000, 2_000)).save(tmp_path / "rather large.png")
    files = [*(str(tmp_path / name) for name in ("text.jpg", "cut.jpg", "large.png", "rather large.png")), None]
    *answers, last = answer_uploads(classifier, [*files, str(good)], None, 5.0)
    reasons = ["not a JPEG", "truncated", "up to 5 megapixels", "3000 x 2000 pixels, 6.0 megapixels", ""]
    for reason, answer in zip(reasons, answers, strict=True):
        assert reason in answer.message
        assert (answer.probabilities, answer.picture) == (None, None)
    assert answers[-1].message == ""
    assert last.probabilities is not None


def test_answer_uploads_escapes_class_names(trained: Path, painted: Path):
    classifier = Classifier.load(trained, "cpu", "32-true")
    names = ["$a$_b_", "[/b]<img src=x>", "\x1b[31m\r", os.fsdecode(b"caf\xe9"), "=1|2"]
    classifier.classes[:] = names
    (answer,) = answer_uploads(classifier, [str(painted / "rose" / "00002.jpg")], 1.0, 50)
    assert answer.probabilities is not None
    assert set(answer.probabilities) == {"$a$_b_", "[/b]<img src=x>", "\\x1b[31m\\r", "caf\\udce9", "=1|2"}
    assert not set(answer.message) & set("\x1b\r\udce9")
    assert not re.search(r"(?<!\\)[$<>\[\]_|]", answer.message)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def app(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An HTTP client of a started app, whose process is `client.headers["pid"]`."""
    temp = tmp_path_factory.mktemp("app")
    port = free_port()
    command = [sys.executable, "-m", "flowers.app", f"run={trained}", f"port={port}", "accelerator=cpu"]
    command += ["allowed_hosts=[flowers.example.com]", "confidence=1", "max_upload_mb=1"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(temp)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        assert f"open http://127.0.0.1:{port}" in server.stdout.readline()
        transport = httpx.HTTPTransport(retries=8)  # the server listens a moment after it says so
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=60) as client:
            client.headers["pid"] = str(server.pid)
            yield client
        server.terminate()
    assert list(temp.glob("flowers-app-*")) == []  # the uploads are deleted


def upload(app: httpx.Client, file: Path, name: str) -> str:
    """Upload a file as the page does; return its path on the server."""
    (path,) = app.post("/gradio_api/upload", files={"files": (name, file.read_bytes())}).json()
    return str(path)


def ask(app: httpx.Client, file: Any) -> httpx.Response:
    """Ask for the class of a file as the page does."""
    dependencies = app.get("/config").json()["dependencies"]
    body = {"data": [file], "fn_index": dependencies[0]["id"], "session_hash": uuid.uuid4().hex, "trigger_id": 1}
    return app.post("/gradio_api/queue/join", json=body)


def result(app: httpx.Client, joined: httpx.Response) -> dict[str, Any]:
    """Wait for the answer to `ask`."""
    session_hash = json.loads(joined.request.content)["session_hash"]
    with app.stream("GET", "/gradio_api/queue/data", params={"session_hash": session_hash}) as events:
        for line in events.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return dict(message)
    raise AssertionError("the stream ended without an answer")


def described(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_page_may_contact_no_other_host(app: httpx.Client):
    response = app.get("/")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:|\*", policy)
    assert "fonts.googleapis" not in response.text


def test_app_classifies_the_uploaded_file_itself(
    app: httpx.Client, classifier: Classifier, painted: Path, tmp_path: Path
):
    cmyk = tmp_path / "cmyk.tif"  # a format and a mode that browsers and Gradio cannot show
    Image.open(painted / "rose" / "00002.jpg").convert("CMYK").save(cmyk)
    for file in (painted / "rose" / "00002.jpg", cmyk):
        answer = result(app, ask(app, described(upload(app, file, file.name))))
        assert answer["success"], answer
        assert answer["output"]["data"][1]["value"]["label"] == classifier(file).label
        picture = answer["output"]["data"][2]["path"]
        assert app.get(f"/gradio_api/file={picture}").headers["content-type"].startswith("image/")


def test_app_refuses_files_that_were_not_uploaded_and_does_not_tell_whether_they_exist(
    app: httpx.Client, painted: Path, tmp_path: Path
):
    uploaded = Path(upload(app, painted / "rose" / "00002.jpg", "rose.jpg"))
    link = uploaded.parent / "link.jpg"
    link.symlink_to(painted / "rose" / "00002.jpg")
    outside = [
        str(painted / "rose" / "00002.jpg"),
        str(tmp_path / "missing.jpg"),
        f"{uploaded.parent}/../../../../../../../../../..{painted}/rose/00002.jpg",
        str(link),
        "/etc/hostname",
        "http://127.0.0.1/rose.jpg",
        "https://example.com/rose.jpg",
        "rose.jpg\0",
    ]
    answers = {(response.status_code, response.text) for response in (ask(app, described(path)) for path in outside)}
    assert answers == {(403, "only uploaded files can be used")}
    assert ask(app, [{"value": described(outside[0])}]).status_code == 403
    assert app.post("/gradio_api/queue/join", content=b"{").status_code == 403
    for path in outside[:-1]:
        assert app.get(f"/gradio_api/file={path}").status_code in (403, 404)  # the client resolves ".." itself
    copies = [path for path in uploaded.parents[1].rglob("*.jpg") if not path.is_symlink()]
    assert all(path.name in ("rose.jpg", "00002.jpg") for path in copies)
    shutil.rmtree(uploaded.parent)


def test_app_refuses_other_hosts_and_other_sites(app: httpx.Client):
    for host in ("evil.example.com", "169.254.1.1", "evil.example.com:7860"):
        assert app.get("/", headers={"Host": host}).status_code == 400
    for origin in ("http://evil.example.com", "http://localhost:1", "null", "https://flowers.example.com.evil.com"):
        assert app.post("/gradio_api/queue/join", json={}, headers={"Origin": origin}).status_code == 403
        assert app.get("/config", headers={"Origin": origin}).status_code == 403
    port = app.base_url.port
    for host, origin in (
        (f"localhost:{port}", f"http://localhost:{port}"),
        ("flowers.example.com", "https://flowers.example.com"),
        (f"127.0.0.1:{port}", "https://flowers.example.com"),
    ):
        assert app.get("/config", headers={"Host": host, "Origin": origin}).status_code == 200


def test_app_refuses_large_requests(app: httpx.Client):
    large = bytes(1_300_000)
    for path in ("upload", "queue/join"):
        response = app.post(f"/gradio_api/{path}", content=large)
        assert (response.status_code, response.text) == (413, "this page takes up to 1 MB")
        response = app.post(f"/gradio_api/{path}", content=iter([large]))  # without a length
        assert response.status_code == 411


def test_app_shows_no_class_as_the_answer_below_the_confidence(app: httpx.Client, painted: Path):
    answer = result(app, ask(app, described(upload(app, painted / "rose" / "00002.jpg", "rose.jpg"))))
    message, label, _ = answer["output"]["data"]
    assert message.startswith("### I don't know")
    assert label["show_heading"] is False


def test_app_answers_many_requests_at_once(app: httpx.Client, painted: Path):
    file = painted / "rose" / "00002.jpg"

    def request(_: int) -> bool:
        return bool(result(app, ask(app, described(upload(app, file, file.name))))["success"])

    def memory() -> int:
        status = Path(f"/proc/{app.headers['pid']}/status").read_text(encoding="ascii")
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    def picture(_: int) -> str:
        answer = result(app, ask(app, described(upload(app, file, file.name))))
        return str(answer["output"]["data"][2]["path"])

    assert picture(0) != picture(1)  # else one request writes a file while another one reads it
    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(request, range(50)))
        before = memory()
        assert all(pool.map(request, range(100)))
        assert memory() < 1.2 * before


def test_app_names_a_port_in_use(trained: Path):
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: in use"):
            main(configuration(f"run={trained}", f"port={port}", name="app"))


def test_app_names_what_is_wrong(tmp_path: Path):
    for overrides, message in (
        (["port=0"], "run="),
        ([f"run={tmp_path}", "port=70000"], "port=70000"),
        ([f"run={tmp_path}", "port=0", "confidence=2"], "confidence=2"),
        ([f"run={tmp_path}", "port=0", "max_megapixels=0"], "max_megapixels=0"),
        ([f"run={tmp_path}", "port=0"], f"run={tmp_path}"),
    ):
        with pytest.raises(ValueError, match=message):
            main(configuration(*overrides, name="app"))
