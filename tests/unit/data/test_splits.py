import hashlib
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.sparse.csgraph import connected_components

from flowers.data.images import check_images
from flowers.data.near_duplicates import NEAR_DUPLICATE_BITS, group_hashes
from flowers.data.sources.layout import find_images
from flowers.data.splits import (
    ImageRecord,
    SplitRecord,
    assign_splits,
    find_label_conflicts,
    find_leaks,
    load_split,
    save_split,
    split_sha256,
    split_to_csv,
)
from flowers.runtime.files import write_cache


def random_images(classes: dict[str, int]) -> list[ImageRecord]:
    """Return images with random hashes, none of them near another."""
    rng = random.Random(0)
    return [
        ImageRecord(f"{label}/{number}", label, f"{rng.getrandbits(256):064x}", f"{rng.getrandbits(256):064x}")
        for label, count in classes.items()
        for number in range(count)
    ]


def read_folder(root: Path) -> list[ImageRecord]:
    found = find_images(root)
    checks = check_images(root, [item.path for item in found])
    return [ImageRecord(item.path, item.label, checks[item.path].sha256, checks[item.path].phash) for item in found]


def test_assign_splits_splits_each_class_eight_to_two():
    records = assign_splits(random_images({"a": 100, "b": 35}))
    assert Counter((record.label, record.split) for record in records) == {
        ("a", "train"): 80,
        ("a", "val"): 20,
        ("b", "train"): 28,
        ("b", "val"): 7,
    }


def test_assign_splits_depends_only_on_contents_and_seed():
    images = random_images({"a": 50, "b": 50})
    moved = [image._replace(path=f"elsewhere/{image.sha256[:5]}") for image in reversed(images)]
    sides = {record.sha256: record.split for record in assign_splits(images)}
    assert sides == {record.sha256: record.split for record in assign_splits(moved)}
    assert sides != {record.sha256: record.split for record in assign_splits(images, seed=1)}


def test_assign_splits_puts_each_image_into_val_in_one_fold_and_keeps_test():
    images = random_images({"a": 43, "b": 27})
    folds = [assign_splits(images, test_fraction=0.1, folds=5, fold=fold) for fold in range(5)]
    tests = [{record.path for record in records if record.split == "test"} for records in folds]
    vals = [record.path for records in folds for record in records if record.split == "val"]
    assert all(test == tests[0] for test in tests)
    assert sorted([*vals, *tests[0]]) == sorted(image.path for image in images)
    sizes = [Counter(record.label for record in records if record.split == "val") for records in folds]
    assert all(max(size[label] for size in sizes) - min(size[label] for size in sizes) <= 1 for label in "ab")


def test_assign_splits_keeps_duplicates_in_one_split(folder: Path, photo):
    for number in range(10):
        path = folder / "orchid" / f"{2 * number:02}.png"
        (folder / "orchid" / f"copy{number}.png").write_bytes(path.read_bytes())
    for seed in range(5):
        records = assign_splits(read_folder(folder), seed=seed)
        assert find_leaks(records) == []
        sides = {record.path: record.split for record in records}
        assert all(sides[f"orchid/copy{n}.png"] == sides[f"orchid/{2 * n:02}.png"] for n in range(10))


def test_assign_splits_keeps_smaller_and_brighter_copies_in_one_split(folder: Path, photo):
    for number in range(20):
        again = ImageEnhance.Brightness(photo(number)).enhance(1.1).resize((72, 60), Image.Resampling.LANCZOS)
        again.save(folder / "lily" / f"again{number}.jpg", quality=80)
    for seed in range(5):
        sides = {record.path: record.split for record in assign_splits(read_folder(folder), seed=seed)}
        originals = {int(Path(path).stem): side for path, side in sides.items() if "again" not in path}
        assert all(sides[f"lily/again{number}.jpg"] == side for number, side in originals.items())


def test_assign_splits_gives_different_images_different_groups(folder: Path):
    assert len({record.group for record in assign_splits(read_folder(folder))}) == 20


def test_find_label_conflicts_finds_an_image_in_two_classes_but_not_twice_in_one(folder: Path):
    content = (folder / "lily" / "01.png").read_bytes()
    (folder / "lily" / "twin.png").write_bytes(content)
    assert find_label_conflicts(read_folder(folder)) == []
    (folder / "orchid" / "twin.png").write_bytes(content)
    (same,) = find_label_conflicts(read_folder(folder))
    assert [image.path for image in same] == ["lily/01.png", "lily/twin.png", "orchid/twin.png"]


def test_load_split_returns_what_was_saved_and_split_sha256_is_the_digest_of_the_file(tmp_path: Path):
    records = assign_splits(random_images({'a, "b"': 10, "薔薇": 10}))
    save_split(records, tmp_path / "split.csv")
    assert load_split(tmp_path / "split.csv") == records
    assert split_sha256(records) == hashlib.sha256((tmp_path / "split.csv").read_bytes()).hexdigest()


def test_load_split_returns_names_of_strangers(tmp_path: Path):
    names = [
        "=1+1",
        "+a",
        "-a",
        "@a",
        "\ta",
        "\ra",
        "a\r",
        "a\nb",
        "a\r\nb",
        "\x1b[31m",
        "'=a",
        "'a",
        '"',
        "$[/b]",
        "\udce9",
    ]
    images = [image for name in names for image in random_images({name: 2})]
    records = assign_splits([image._replace(sha256=f"{number:064x}") for number, image in enumerate(images)])
    save_split(records, tmp_path / "split.csv")
    assert load_split(tmp_path / "split.csv") == records
    lines = (tmp_path / "split.csv").read_bytes().splitlines()
    assert not [line for line in lines if line[:1] in (b"=", b"+", b"-", b"@")]


def test_split_to_csv_writes_ordinary_names_as_before():
    record = SplitRecord('ro, "se"/1 é.jpg', 'ro, "se"', "val", "0" * 16, "1" * 64)
    lines = ["path,class,split,group,sha256", f'"ro, ""se""/1 é.jpg","ro, ""se""",val,{"0" * 16},{"1" * 64}', ""]
    assert split_to_csv([record]) == "\n".join(lines)


HEADER = "path,class,split,group,sha256\n"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "path,class\na,b\n",
        HEADER,
        HEADER + "a,b,dev,c,d\n",
        HEADER + "a,b\n",
        HEADER + "a,b,val,c,d\n" * 2,
        HEADER + "a,b,val,c,d\n",
    ],
)
def test_load_split_refuses_other_files(tmp_path: Path, content: str):
    (tmp_path / "split.csv").write_text(content, encoding="utf-8")
    for name in ("split.csv", "missing.csv"):
        with pytest.raises(ValueError, match="expected"):
            load_split(tmp_path / name)


def test_load_split_reads_a_file_saved_by_a_spreadsheet(tmp_path: Path):
    records = assign_splits(random_images({"a": 10, "b": 10}))
    (tmp_path / "split.csv").write_text(split_to_csv(records).replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert load_split(tmp_path / "split.csv") == records


@pytest.mark.parametrize(
    "settings", [{"val_fraction": 1.0}, {"test_fraction": 0.9}, {"folds": 5, "fold": 5}, {"folds": 1}, {"folds": 30}]
)
def test_assign_splits_refuses_impossible_fractions_and_folds(settings: dict[str, float]):
    with pytest.raises(ValueError, match="expected"):
        assign_splits(random_images({"a": 20, "b": 20}), **settings)  # type: ignore[arg-type]


def random_hashes(count: int) -> list[str]:
    """Return hashes of which every fourth differs from an earlier one in 0 to 70 bits."""
    rng = random.Random(0)
    bits: list[int] = []
    for number in range(count):
        if number % 4 == 3:
            flips = rng.sample(range(256), rng.choice([0, 1, 30, 63, 64, 65, 70]))
            bits.append(rng.choice(bits) ^ sum(1 << flip for flip in flips))
        else:
            bits.append(rng.getrandbits(256))
    return [f"{number:064x}" for number in bits]


def group_by_brute_force(phashes: list[str]) -> list[int]:
    """Return for each hash the smallest index that is connected to it through near hashes."""
    bits = [int(phash, 16) for phash in phashes]
    near = [[(one ^ other).bit_count() <= NEAR_DUPLICATE_BITS for other in bits] for one in bits]
    neighbors = [np.flatnonzero(row) for row in near]
    found = np.arange(len(bits))
    while True:
        smaller = np.array([found[indices].min() for indices in neighbors])
        if (smaller == found).all():
            return [int(index) for index in found]
        found = smaller


def as_sets(numbers: list[int]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.array(numbers) == number).tolist()) for number in numbers}


@pytest.fixture
def cached_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached groups, empty at first."""
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    return tmp_path / "groups"


@pytest.mark.parametrize("block_rows", [6, 7, 100, 2048])
def test_group_hashes_agrees_with_brute_force_for_any_block_size(block_rows: int):
    phashes = random_hashes(500)
    assert as_sets(group_hashes(phashes, block_rows)) == as_sets(group_by_brute_force(phashes))


def test_group_hashes_has_the_pairs_of_an_exhaustive_search_of_a_few_thousand():
    """Half of the hashes have a partner at a distance around the limit, in any of the bits; one block is not enough."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (2400, 256), dtype=np.uint8)
    for row in range(1200):
        bits[1200 + row] = bits[row]
        start = rng.integers(256)  # the first bits, which are not in the screen, differ as often as the others
        bits[1200 + row, np.arange(start, start + rng.integers(60, 69)) % 256] ^= 1
    words = np.packbits(bits, axis=1).view(np.uint64)
    near = np.bitwise_count(words[:, None] ^ words).sum(axis=2) <= NEAR_DUPLICATE_BITS
    assert 500 < (near.sum() - 2400) / 2 < 700
    phashes = [row.tobytes().hex() for row in words]
    numbers = np.array(group_hashes(phashes))
    _, expected = connected_components(near, directed=False)
    assert as_sets(numbers.tolist()) == as_sets(expected.tolist())


def test_group_hashes_is_exact_for_any_number_of_ones():
    values = (0, 2**256 - 1, 2**64 - 1, 2**65 - 1, (2**64 - 1) << 192, (2**65 - 1) << 191)
    phashes = [f"{value:064x}" for value in values]
    assert as_sets(group_hashes(phashes)) == {frozenset({0, 2, 3, 4, 5}), frozenset({1})}
    assert as_sets(group_hashes([*phashes[:2], phashes[5]])) == {frozenset({0}), frozenset({1}), frozenset({2})}


def test_group_hashes_puts_near_hashes_into_one_group_and_restores_the_threads_of_torch():
    threads = torch.get_num_threads()
    assert set(group_hashes([f"{1 << number:064x}" for number in range(256)], block_rows=64)) == {0}
    assert torch.get_num_threads() == threads


def test_group_hashes_reads_cached_groups_and_does_not_compute_them_again(cached_groups: Path):
    phashes = random_hashes(100)
    computed = group_hashes(phashes, cache_above=0)
    assert computed == group_hashes(phashes)
    (file,) = cached_groups.iterdir()
    distinct = sorted(set(phashes))
    write_cache(file, np.arange(len(distinct), dtype="<i4").tobytes())  # others than those computed
    assert group_hashes(phashes, cache_above=0) == [distinct.index(phash) for phash in phashes]
    assert group_hashes(phashes[::-1], cache_above=0) == [distinct.index(phash) for phash in phashes[::-1]]
    group_hashes(phashes[1:], cache_above=0)
    assert len(list(cached_groups.iterdir())) == 2


@pytest.mark.parametrize("damaged", [b"", b"short", b"\0" * 32, b"\0" * 432, None])
def test_group_hashes_replaces_a_damaged_cache_file(
    cached_groups: Path, damaged: bytes | None, caplog: pytest.LogCaptureFixture
):
    phashes = random_hashes(100)
    computed = group_hashes(phashes, cache_above=0)
    (file,) = cached_groups.iterdir()
    content = file.read_bytes()
    if damaged is None:
        file.unlink()
        (file / "something").mkdir(parents=True)
    else:
        file.write_bytes(damaged)
    assert group_hashes(phashes, cache_above=0) == computed
    assert file.read_bytes() == content
    assert caplog.text.count(f"{file} is damaged") == 1


def test_group_hashes_goes_on_without_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "file"))
    phashes = random_hashes(100)
    assert group_hashes(phashes, cache_above=0) == group_hashes(phashes)
    assert f"cannot use the cache {tmp_path / 'file'}" in caplog.text


def test_group_hashes_bounds_the_size_of_the_cache(cached_groups: Path):
    for count in range(10, 16):
        group_hashes(random_hashes(count), cache_above=0, cache_bytes=300)
        assert sum(path.stat().st_size for path in cached_groups.iterdir()) <= 300
    assert len(list(cached_groups.iterdir())) == 3  # of about 32 + 4 * 15 bytes


def test_group_hashes_does_not_cache_a_few_hashes(cached_groups: Path):
    group_hashes(random_hashes(100))
    assert not cached_groups.exists()


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
def test_assign_splits_never_changes_for_the_same_images(settings: dict[str, float], digest: str):
    images = [
        ImageRecord(f"{number % 3}/{number}", str(number % 3), hashlib.sha256(str(number).encode()).hexdigest(), phash)
        for number, phash in enumerate(random_hashes(1000))
    ]
    assert split_sha256(assign_splits(images, **settings)) == digest  # type: ignore[arg-type]
