import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers.data.splits import NEAR_DUPLICATE_BITS, ImageRecord, assign_splits, group_hashes, split_sha256


def made_up(count: int) -> list[str]:
    """Hashes of which each fourth differs from an earlier one in 0 to 70 bits."""
    rng = random.Random(0)
    bits: list[int] = []
    for number in range(count):
        if number % 4 == 3:
            flips = rng.sample(range(256), rng.choice([0, 1, 30, 63, 64, 65, 70]))
            bits.append(rng.choice(bits) ^ sum(1 << flip for flip in flips))
        else:
            bits.append(rng.getrandbits(256))
    return [f"{number:064x}" for number in bits]


def by_brute_force(phashes: list[str]) -> list[int]:
    """The smallest index that can be reached from each hash over near ones."""
    bits = [int(phash, 16) for phash in phashes]
    near = [[(one ^ other).bit_count() <= NEAR_DUPLICATE_BITS for other in bits] for one in bits]
    neighbours = [np.flatnonzero(row) for row in near]
    found = np.arange(len(bits))
    while True:
        closer = np.array([found[indices].min() for indices in neighbours])
        if (closer == found).all():
            return [int(index) for index in found]
        found = closer


def as_sets(numbers: list[int]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.array(numbers) == number).tolist()) for number in numbers}


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept groups, where even a few hashes are kept."""
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    monkeypatch.setattr("flowers.data.splits._UNCACHED_HASHES", 0)
    return tmp_path / "groups"


@pytest.mark.parametrize("block", [7, 100, 2048])
def test_groups_are_those_of_brute_force_whatever_the_block(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowers.data.splits._BLOCK_ROWS", block)
    phashes = made_up(500)
    assert as_sets(group_hashes(phashes)) == as_sets(by_brute_force(phashes))


def test_a_processor_without_bfloat16_finds_the_same_groups(monkeypatch: pytest.MonkeyPatch):
    phashes = made_up(500)
    found = group_hashes(phashes)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert group_hashes(phashes) == found


def test_photos_that_are_all_near_are_one_group_and_torch_keeps_its_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowers.data.splits._BLOCK_ROWS", 64)
    threads = torch.get_num_threads()
    assert set(group_hashes([f"{1 << number:064x}" for number in range(256)])) == {0}
    assert torch.get_num_threads() == threads


def test_kept_groups_are_those_computed_and_nothing_is_computed_again(keeping: Path, monkeypatch: pytest.MonkeyPatch):
    phashes = made_up(100)
    computed = group_hashes(phashes)
    monkeypatch.setattr("flowers.data.splits._components", None)
    assert group_hashes(phashes) == computed
    assert group_hashes(phashes[::-1]) == computed[::-1]
    with pytest.raises(TypeError):
        group_hashes(phashes[1:])


@pytest.mark.parametrize("broken", [b"", b"short", b"\0" * 32, b"\0" * 432])
def test_a_broken_file_of_groups_is_computed_anew(keeping: Path, broken: bytes):
    phashes = made_up(100)
    computed = group_hashes(phashes)
    (file,) = keeping.iterdir()
    whole = file.read_bytes()
    file.write_bytes(broken)
    assert group_hashes(phashes) == computed
    assert file.read_bytes() == whole


def test_only_the_newest_files_of_groups_stay(keeping: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowers.data.splits._MAX_GROUP_FILES", 3)
    for count in range(10, 16):
        group_hashes(made_up(count))
    assert len(list(keeping.iterdir())) == 3


def test_a_few_hashes_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    group_hashes(made_up(100))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "40a15a59b24b8f3394893e295dd385b5a6d2337fbc0ec3e2d1d8eac2f66e4942"),
        (
            {"test_fraction": 0.1, "folds": 5, "fold": 2, "seed": 3},
            "d3865fe3316882c6f0f3a5650a7d47674ae856bf34acf91547329c2a10482d0f",
        ),
    ],
)
def test_a_split_is_for_ever(settings: dict[str, float], digest: str):
    made = [
        ImageRecord(f"{number % 3}/{number}", str(number % 3), hashlib.sha256(str(number).encode()).hexdigest(), phash)
        for number, phash in enumerate(made_up(1000))
    ]
    assert split_sha256(assign_splits(made, **settings)) == digest  # type: ignore[arg-type]
