import json
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from flowers.app import main
from flowers.deploy.classifier import Classifier
from flowers.deploy.web_app import answer_upload
from tests.helpers import configuration


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return Classifier.load(trained, "cpu", "32-true")


def test_answer_upload_returns_probabilities_and_a_heat_map(classifier: Classifier, painted: Path):
    file = painted / "rose" / "00002.jpg"
    message, probabilities, picture = answer_upload(classifier, str(file), None)
    assert message == ""
    assert probabilities == classifier(file).probabilities
    assert picture is not None
    assert picture.width > picture.height


def test_answer_upload_does_not_know_below_the_confidence(classifier: Classifier, painted: Path):
    message, _, _ = answer_upload(classifier, str(painted / "rose" / "00002.jpg"), 1.0)
    assert message.startswith("### I don't know")


def test_answer_upload_says_why_a_file_cannot_be_read(classifier: Classifier, painted: Path, tmp_path: Path):
    (tmp_path / "text.jpg").write_text("not an image")
    content = (painted / "rose" / "00002.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    for name, reason in (("text.jpg", "not a JPEG"), ("cut.jpg", "truncated"), ("large.png", "over the limit")):
        message, probabilities, picture = answer_upload(classifier, str(tmp_path / name), None)
        assert reason in message
        assert (probabilities, picture) == (None, None)
    assert answer_upload(classifier, None, None) == ("", None, None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def app(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An HTTP client of a started app. Its temporary files are in the folder `client.headers["temp"]`."""
    temp = tmp_path_factory.mktemp("app")
    port = free_port()
    command = [sys.executable, "-m", "flowers.app", f"run={trained}", f"port={port}", "accelerator=cpu"]
    command += ["allowed_hosts=[flowers.example.com]"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(temp)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        assert f"open http://127.0.0.1:{port}" in server.stdout.readline()
        transport = httpx.HTTPTransport(retries=8)  # the server listens a moment after it says so
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=60) as client:
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
        assert answer["output"]["data"][1]["label"] == classifier(file).label
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
        ([f"run={tmp_path}", "port=0"], f"run={tmp_path}"),
    ):
        with pytest.raises(ValueError, match=message):
            main(configuration(*overrides, name="app"))
