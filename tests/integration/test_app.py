import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowers.app import main
from flowers.deploy.classifier import Classifier
from flowers.deploy.web_app import answer_upload
from tests.helpers import configuration


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return Classifier.load(trained, "cpu", "32-true")


def test_a_photo_gets_its_class_all_probabilities_and_its_heat(classifier: Classifier, painted: Path):
    file = painted / "rose" / "00002.jpg"
    line, probabilities, heat = answer_upload(classifier, str(file), None)
    said = classifier(file)
    assert line == ""
    assert probabilities == said.probabilities
    assert heat is not None
    assert heat.width > heat.height


def test_under_the_confidence_asked_for_it_does_not_know(classifier: Classifier, painted: Path):
    line, _, _ = answer_upload(classifier, str(painted / "rose" / "00002.jpg"), 1.0)
    assert line.startswith("### I don't know")


def test_any_upload_is_answered_in_a_line(classifier: Classifier, painted: Path, tmp_path: Path):
    (tmp_path / "text.jpg").write_text("no photo")
    content = (painted / "rose" / "00002.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    for name, reason in (("text.jpg", "not a JPEG"), ("cut.jpg", "truncated"), ("large.png", "over the limit")):
        line, probabilities, heat = answer_upload(classifier, str(tmp_path / name), None)
        assert reason in line
        assert (probabilities, heat) == (None, None)
    assert answer_upload(classifier, None, None) == ("", None, None)


def test_the_page_is_served_here_alone_and_may_ask_no_other_host(trained: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "flowers.app", f"run={trained}", f"port={port}", "accelerator=cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as server:
        try:
            assert server.stdout is not None
            assert f"open http://127.0.0.1:{port}" in server.stdout.readline()
            response = answered(port)
        finally:
            server.terminate()
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:|\*", policy)
    assert "fonts.googleapis" not in response.read().decode()


def answered(port: int) -> Any:
    """What the server answers, as soon as it listens: within ten seconds of saying where."""
    for _ in range(100):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError("no answer")


def test_a_port_in_use_is_named(trained: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: in use"):
            main(configuration(f"run={trained}", f"port={port}", name="app"))


def test_what_is_missing_or_wrong_is_named(tmp_path: Path):
    for overrides, message in (
        (["port=0"], "which run"),
        ([f"run={tmp_path}", "port=70000"], "port=70000"),
        ([f"run={tmp_path}", "port=0"], "no run there"),
    ):
        with pytest.raises(ValueError, match=message):
            main(configuration(*overrides, name="app"))
