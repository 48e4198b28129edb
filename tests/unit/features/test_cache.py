import errno
import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from flowers.features.cache import FeatureCache, IndexedFeatures


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))


def digests(*names: int) -> list[str]:
    return [hashlib.sha256(str(name).encode()).hexdigest() for name in names]


class Backbone:
    """Computes `[name, name]` for each photo, three at a time, and notes which it was asked for."""

    def __init__(self, *names: int) -> None:
        self.names, self.asked = names, list[int]()

    def __call__(self, places: list[int]) -> Iterator[IndexedFeatures]:
        self.asked += [self.names[place] for place in places]
        for start in range(0, len(places), 3):
            batch = places[start : start + 3]
            yield batch, torch.tensor([self.names[place] for place in batch])[:, None].repeat(1, 2).bfloat16()


def fetched(*names: int, key: str = "a", max_gb: float = 1.0) -> tuple[list[float], list[int]]:
    """The features' first column, and the photos that had to be computed."""
    backbone = Backbone(*names)
    features = FeatureCache({"key": key}, 2, max_gb).fetch(digests(*names), backbone)
    assert features.dtype == torch.bfloat16
    return features[:, 0].tolist(), backbone.asked


def test_fetch_computes_each_image_once_for_all_splits():
    assert fetched(1, 2, 3, 4, 5) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert fetched(5, 1) == ([5, 1], [])
    assert fetched(6, 2, 7) == ([6, 2, 7], [6, 7])


def test_another_key_finds_nothing():
    fetched(1, 2)
    assert fetched(1, 2, key="b") == ([1, 2], [1, 2])


def test_fetch_computes_a_duplicate_image_once():
    assert fetched(1, 2, 1, 1) == ([1, 2, 1, 1], [1, 2])


def test_fetch_stores_a_long_pass_in_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowers.runtime.files.CHUNK_SECONDS", 0.0)
    names = 1, 2, 3, 4, 5, 6, 7

    def killed(places: list[int]) -> Iterator[IndexedFeatures]:
        yield from list(Backbone(*names)(places))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache({"key": "a"}, 2, 1.0).fetch(digests(*names), killed)
    assert fetched(*names) == ([1, 2, 3, 4, 5, 6, 7], [7])


def test_fetch_accepts_features_in_any_order():
    def backwards(places: list[int]) -> Iterator[IndexedFeatures]:
        yield from reversed(list(Backbone(1, 2, 3, 4, 5)(places)))

    features = FeatureCache({"key": "a"}, 2, 1.0).fetch(digests(1, 2, 3, 4, 5), backwards)
    assert features[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert fetched(3, 5, 1) == ([3, 5, 1], [])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of the features
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def replace_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "file").touch()


def store(features: Tensor, file: Path) -> None:
    """Replace a file by one whose name matches its content."""
    keys = torch.tensor([list(bytes.fromhex(digest)) for digest in digests(1, 2)], dtype=torch.uint8)
    content = save({"sha256": keys, "features": features})
    file.unlink()
    file.with_stem(hashlib.sha256(content).hexdigest()).write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut,
        replace_by_a_folder,
        partial(store, torch.tensor([[1.0, 1.0], [2.0, float("nan")]])),
        partial(store, torch.ones(2, 3)),
        partial(store, torch.ones(2)),
    ],
)
def test_fetch_computes_damaged_features_again_and_says_so_in_one_line(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fetched(1, 2)
    (file,) = tmp_path.rglob("*.safetensors")
    damage(file)
    (file,) = tmp_path.rglob("*.safetensors")
    assert fetched(1, 2) == ([1, 2], [1, 2])
    (record,) = caplog.records
    assert str(file) in record.getMessage()
    assert "\n" not in record.getMessage()
    assert fetched(1, 2) == ([1, 2], [])
    assert len(caplog.records) == 1


def test_fetch_does_not_store_what_is_not_a_number():
    def compute(places: list[int]) -> Iterator[IndexedFeatures]:
        yield places, torch.tensor([[1.0, float("inf")], [2.0, 2.0]])[places]

    for missing in ([0, 1], [0]):
        asked = list[int]()

        def noted(places: list[int], asked: list[int] = asked) -> Iterator[IndexedFeatures]:
            asked += places
            yield from compute(places)

        features = FeatureCache({"key": "a"}, 2, 1.0).fetch(digests(1, 2), noted)
        assert torch.equal(features, torch.tensor([[1.0, float("inf")], [2.0, 2.0]]))
        assert asked == missing


@pytest.mark.parametrize("place", ["cache", "cache/features", "cache/features/{key}"])
def test_fetch_continues_without_a_cache_that_cannot_be_written(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flowers.runtime.files.CHUNK_SECONDS", 0.0)  # several files
    folder = FeatureCache({"key": "a"}, 2, 1.0).folder
    taken = tmp_path / place.format(key=folder.name)
    taken.parent.mkdir(parents=True, exist_ok=True)
    taken.write_text("a file where the folder should be")
    assert fetched(1, 2, 3, 4) == ([1, 2, 3, 4], [1, 2, 3, 4])
    (record,) = caplog.records
    assert str(folder) in record.getMessage()


def test_fetch_continues_without_a_cache_on_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    fetched(1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    assert fetched(1, 2) == ([1, 2], [2])
    (record,) = caplog.records
    assert "disk full" in record.getMessage()
    assert str(tmp_path) in record.getMessage()


def test_fetch_uses_a_cache_that_can_only_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    fetched(1, 2)
    files = sorted(tmp_path.rglob("*.safetensors"))
    for name in ("os.open", "os.utime", "os.unlink"):  # tests may run as root, who may write everywhere
        monkeypatch.setattr(name, refused)
    assert fetched(1, 2) == ([1, 2], [])
    assert not caplog.records
    assert sorted(tmp_path.rglob("*.safetensors")) == files


def test_fetch_deletes_what_a_killed_process_left_behind(tmp_path: Path):
    fetched(1, key="other")
    with subprocess.Popen(["true"]) as ended:
        pass
    folder = FeatureCache({"key": "other"}, 2, 1.0).folder
    for process in (ended.pid, os.getpid()):
        (folder / f".x.safetensors.{platform.node()}.{process}.part").touch()
    fetched(1)
    (part,) = tmp_path.rglob("*.part")
    assert f".{os.getpid()}." in part.name


def test_fetch_reports_that_it_waits():
    lock = FileLock(FeatureCache({"key": "a"}, 2, 1.0).folder / ".lock")
    Path(lock.lock_file).parent.mkdir(parents=True)
    lock.acquire()
    cache = FeatureCache({"key": "a"}, 2, 1.0)
    assert cache.fetch(digests(1), Backbone(1), lock.release).tolist() == [[1, 1]]


def test_fetch_evicts_the_least_recently_used_files(tmp_path: Path):
    for age, key in ((2, "old"), (3, "used again"), (1, "new")):
        fetched(1, 2, key=key)
        for file in FeatureCache({"key": key}, 2, 1.0).folder.glob("*.safetensors"):
            os.utime(file, (1e9 - age, 1e9 - age))
    fetched(1, key="used again")
    size = next(tmp_path.rglob("*.safetensors")).stat().st_size
    fetched(1, 2, key="newest", max_gb=3.5 * size / 2**30)
    assert [fetched(1, 2, key=name)[1] for name in ("used again", "new", "newest", "old")] == [[], [], [], [1, 2]]


def test_one_of_several_concurrent_fetches_computes():
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: fetched(1, 2, 3), range(4)))
    assert all(features == [1, 2, 3] for features, _ in results)
    assert sorted(len(asked) for _, asked in results) == [0, 0, 0, 3]
