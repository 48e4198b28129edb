import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

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
    features = FeatureCache({"key": key}, max_gb).fetch(digests(*names), backbone)
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
        FeatureCache({"key": "a"}, 1.0).fetch(digests(*names), killed)
    assert fetched(*names) == ([1, 2, 3, 4, 5, 6, 7], [7])


def test_fetch_accepts_features_in_any_order():
    def backwards(places: list[int]) -> Iterator[IndexedFeatures]:
        yield from reversed(list(Backbone(1, 2, 3, 4, 5)(places)))

    features = FeatureCache({"key": "a"}, 1.0).fetch(digests(1, 2, 3, 4, 5), backwards)
    assert features[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert fetched(3, 5, 1) == ([3, 5, 1], [])


def test_fetch_replaces_an_unreadable_file(tmp_path: Path):
    fetched(1, 2)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    assert fetched(1, 2) == ([1, 2], [1, 2])
    assert fetched(1, 2) == ([1, 2], [])


def test_fetch_evicts_the_least_recently_used_files(tmp_path: Path):
    for age, key in ((2, "old"), (3, "used again"), (1, "new")):
        fetched(1, 2, key=key)
        for file in FeatureCache({"key": key}, 1.0).folder.glob("*.safetensors"):
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
