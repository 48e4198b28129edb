"""The app under load: 50 clients, large photos of 16 bits, and many small files.

A claim about a real network needs $LOAD_RUN, a run, and $LOAD_PHOTOS, a folder of photos; else both are small.
$LOAD_SECONDS is the time of each part.
"""

import http.client
import io
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers.deploy.classifier import Classifier

pytestmark = pytest.mark.faults

SECONDS = float(os.environ.get("LOAD_SECONDS", "10"))
CLIENTS = 50


@pytest.fixture(scope="module")
def run(trained: Path) -> Path:
    return Path(os.environ.get("LOAD_RUN", trained))


@pytest.fixture(scope="module")
def photos(painted: Path) -> list[bytes]:
    files = sorted(Path(os.environ.get("LOAD_PHOTOS", painted)).glob("*/*.jpg"))[:200]
    return [file.read_bytes() for file in files]


class Server:
    """A server in a process of its own."""

    def __init__(self, run: Path, *overrides: str) -> None:
        command = [sys.executable, "-m", "flowers.app", f"run={run}", "port=0", "accelerator=cpu", *overrides]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = "".join(iter(lambda: self._line(), ""))
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", said)[1])  # type: ignore[index]

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has ended"
        return "" if "Ctrl-C stops the server" in line else line

    def memory(self) -> int:
        """Return the resident memory in kB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    def ask(self, count: int, seconds: float, content: Callable[[int], bytes]) -> tuple[int, list[str], list[int]]:
        """Let `count` clients ask, each over one connection.

        Returns:
            How many images were answered, what went wrong, and the memory each second.
        """
        end, numbers = time.monotonic() + seconds, itertools.count()
        answered, wrong, memory = [0], list[str](), list[int]()

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            while time.monotonic() < end:
                try:
                    connection.request("POST", "/predict", content(next(numbers)), {"Content-Type": "image/jpeg"})
                    response = connection.getresponse()
                    body = json.loads(response.read())
                    if response.status != 200:
                        wrong.append(f"{response.status} {body}")
                    elif error := body["predictions"][0]["error"]:
                        wrong.append(error)
                    else:
                        answered[0] += 1
                except Exception as error:
                    wrong.append(repr(error))
                    connection.close()

        threads = [threading.Thread(target=client) for _ in range(count)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            memory.append(self.memory())
        return answered[0], wrong, memory


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    started = Server(run, "max_megapixels=90")
    try:
        yield started
    finally:
        started.process.terminate()
        with started.process:  # closes its output
            assert started.process.wait(10) == 0


def is_flat(memory: list[int]) -> bool:
    """Compare the first and last sixth, without the warm-up."""
    part = max(1, len(memory) // 6)
    first, last = np.mean(memory[1 : 1 + part]), np.mean(memory[-part:])
    print(f"memory: {first / 1e3:.0f} MB at first, {last / 1e3:.0f} MB at last, {max(memory) / 1e3:.0f} MB at most")  # noqa: T201
    return bool(last < 1.05 * first)


def test_fifty_clients_get_most_of_the_speed_of_the_model(run: Path, photos: list[bytes], server: Server):
    classifier = Classifier.load(run, "cpu")
    batch = torch.stack([classifier.pixels(io.BytesIO(photo)) for photo in photos[: classifier.backbone.batch_size]])

    def model_rate() -> float:
        """Return how many images a second the network classifies that are decoded already."""
        start, count = time.monotonic(), 0
        while time.monotonic() - start < SECONDS / 4:
            count += len(classifier.classify(batch))
        return count / (time.monotonic() - start)

    model_rate()
    before = model_rate()
    server.ask(CLIENTS, SECONDS / 6, lambda number: photos[number % len(photos)])  # warm-up
    answered, wrong, memory = server.ask(CLIENTS, SECONDS, lambda number: photos[number % len(photos)])
    after = model_rate()
    rate = answered / SECONDS
    print(f"{rate:.1f} images/s; the model alone {before:.1f} before, {after:.1f} after")  # noqa: T201
    assert wrong == []
    assert is_flat(memory)
    if "LOAD_RUN" in os.environ:  # a tiny network is faster than any server
        assert rate > 0.7 * (before + after) / 2


def test_memory_is_flat_under_large_images_of_16_bits(server: Server):
    file = io.BytesIO()
    Image.fromarray(np.zeros((9_400, 9_500), np.uint16)).save(file, "PNG")  # 89 megapixels, 0.2 MB
    server.ask(4, SECONDS / 2, lambda _: file.getvalue())
    answered, wrong, memory = server.ask(8, SECONDS, lambda _: file.getvalue())
    assert wrong == []
    assert answered
    assert is_flat(memory)
    assert max(memory) < 3_000_000


def test_memory_is_flat_under_1500_small_files(server: Server, photos: list[bytes]):
    before = server.memory()
    sizes: list[int] = []
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\n%b\r\n'
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    for start in range(0, 1500, 60):
        chosen = [photos[number % len(photos)] for number in range(start, start + 60)]
        body = b"".join(part % photo for photo in chosen) + b"--b--"
        connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=b"})
        predictions = json.loads(connection.getresponse().read())["predictions"]
        assert [each["error"] for each in predictions] == [None] * 60
        sizes.append(server.memory())
    connection.close()
    print(f"memory: {before / 1e3:.0f} MB before, {max(sizes) / 1e3:.0f} MB at most")  # noqa: T201
    assert max(sizes[5:]) < 1.05 * max(sizes[:5])
