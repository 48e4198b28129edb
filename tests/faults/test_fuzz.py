"""Mutated files: each is read, or refused by an error of this project. None runs code or takes much memory."""

import io
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers.data.images import check_images, read_error_reason, read_image
from flowers.data.sources.shards import ShardSource
from flowers.data.splits import load_split
from flowers.runs.predictions import load_predictions
from flowers.runs.resume import read_start
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, RESULT_FILE, START_FILE, read_result
from flowers.runtime.files import write_json
from flowers.runtime.text import read_csv
from flowers.search.manifest import SEARCH_FILE, SearchManifest, read_manifest

pytestmark = pytest.mark.faults

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1000"))  # of each kind of file
SPECIAL = [
    b"\0",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"-1",
    b"1e999",
    b"NaN",
    b"\r",
    b'"',
    b"../",
    b"=cmd()",
    b"\x1b[2J",
    b"{",
    b"[",
]

mutations = st.lists(
    st.tuples(st.floats(0, 1), st.one_of(st.binary(max_size=6), st.sampled_from(SPECIAL)), st.integers(0, 40)),
    min_size=1,
    max_size=6,
)


def mutate(content: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    """Replace `count` bytes at each position by others; a position of 1 cuts the end off."""
    for place, inserted, count in changes:
        start = int(place * len(content))
        content = content[:start] + inserted + content[start + count :] if place < 0.97 else content[: start // 2]
    return content


def fuzz(
    content: bytes, read: Callable[[bytes], Any], accepted: tuple[type[BaseException], ...] = (ValueError,)
) -> None:
    """Read many mutations of `content`; only `accepted` errors of one line may be raised."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(mutations)
    def attempt(changes: list[tuple[float, bytes, int]]) -> None:
        try:
            read(mutate(content, changes))
        except accepted as error:
            assert "\n" not in str(error).strip()  # noqa: PT017

    attempt()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1_500_000, f"reading mutated files took {grown / 1e6:.1f} GB"  # in kB; one image may take 0.36 GB


def from_file(path: Path, read: Callable[[], Any]) -> Callable[[bytes], Any]:
    def write_and_read(content: bytes) -> Any:
        path.write_bytes(content)
        return read()

    return write_and_read


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_mutated_image_is_read_or_refused(form: str, photo: Callable[..., Image.Image]):
    file = io.BytesIO()
    photo(1).save(file, form)

    def read(content: bytes) -> None:
        try:
            assert read_image(io.BytesIO(content)).mode == "RGB"
        except Exception as error:  # any error of Pillow becomes a reason of one line
            assert "\n" not in read_error_reason(error)  # noqa: PT017

    fuzz(file.getvalue(), read)


def test_mutated_image_is_checked(photo: Callable[..., Image.Image], tmp_path: Path):
    photo(1).save(tmp_path / "photo.jpg")
    original = (tmp_path / "photo.jpg").read_bytes()
    fuzz(original, from_file(tmp_path / "photo.jpg", lambda: check_images(tmp_path, ["photo.jpg"])))


def test_mutated_checkpoint_is_read_or_refused(trained: Path, tmp_path: Path):
    path = tmp_path / "best.ckpt"
    original = (Path(__file__).parents[1] / "fixtures" / "run_format_1" / BEST_CHECKPOINT).read_bytes()
    fuzz(original, from_file(path, lambda: Run(path, needs_settings=False).network()))


def test_mutated_split_is_read_or_refused(trained: Path, tmp_path: Path):
    path = tmp_path / "split.csv"
    fuzz((trained / "split.csv").read_bytes(), from_file(path, lambda: load_split(path)))


def test_mutated_csv_is_read_or_refused(tmp_path: Path):
    path = tmp_path / "any.csv"
    fuzz(b'path,class\na/1.jpg,a\n\'=b,"c,d"\n', from_file(path, lambda: read_csv(path)))


def test_mutated_predictions_are_read_or_refused(trained: Path, tmp_path: Path):
    path = tmp_path / "val.csv"
    fuzz((trained / "predictions" / "val.csv").read_bytes(), from_file(path, lambda: load_predictions(path)))


def test_mutated_manifest_of_shards_is_read_or_refused(shards: Path, tmp_path: Path):
    for path in shards.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "shards.json").unlink()

    def read() -> None:
        source = ShardSource(str(tmp_path), None, 1.0, 1.0)
        for record in source.records[:2]:
            (source / record.path).content()

    fuzz((shards / "shards.json").read_bytes(), from_file(tmp_path / "shards.json", read))


@pytest.mark.parametrize("name", ["places.npy", "split.csv", "train-000000.tar"])
def test_mutated_file_of_shards_is_read_or_refused(name: str, shards: Path, tmp_path: Path):
    for path in shards.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()

    def read() -> None:
        source = ShardSource(str(tmp_path), None, 1.0, 1.0)
        for record in source.records:
            if record.split == "train":
                (source / record.path).content()

    fuzz((shards / name).read_bytes(), from_file(tmp_path / name, read))


def test_mutated_start_of_a_run_is_read_or_refused(tmp_path: Path):
    original = b"cwd: /tmp\noverrides:\n- model=resnet18\n- data.root='/a b'\n"
    fuzz(original, from_file(tmp_path / START_FILE, lambda: read_start(tmp_path)))


def test_mutated_manifest_of_a_search_is_read_or_refused(tmp_path: Path):
    SearchManifest("0" * 32, "/tmp", ["optimizer.lr=1e-3,1e-2"], False, ["sweep.trials=5"]).save(tmp_path)
    fuzz((tmp_path / SEARCH_FILE).read_bytes(), from_file(tmp_path / SEARCH_FILE, lambda: read_manifest(tmp_path)))


def test_mutated_result_is_read_or_refused(tmp_path: Path):
    val = {"accuracy": 0.5, "loss": 1.0, "n": 4, "interval": [0.1, 0.9]}
    write_json({"val": val, "cost": {"seconds": {"head": 1.0}}}, tmp_path / RESULT_FILE)
    original = json.dumps(json.loads((tmp_path / RESULT_FILE).read_text("utf-8"))).encode()
    fuzz(original, from_file(tmp_path / RESULT_FILE, lambda: read_result(tmp_path)))
