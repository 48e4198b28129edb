import hashlib
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from flowers.data.images import check_images
from flowers.data.sources.layout import find_images
from flowers.data.splits import (
    ImageRecord,
    SplitRecord,
    assign_splits,
    describe_shortages,
    find_label_conflicts,
    find_leaks,
    group_summary,
    load_split,
    save_split,
    split_sha256,
    split_to_csv,
)
from flowers.data.splitter import Splitter


def random_images(classes: dict[str, int]) -> list[ImageRecord]:
    """Return images with random hashes, each in a group of its own."""
    rng = random.Random(0)
    images = [
        ImageRecord(f"{label}/{number}", label, f"{rng.getrandbits(256):064x}", f"{rng.getrandbits(256):064x}")
        for label, count in classes.items()
        for number in range(count)
    ]
    return [image._replace(group=image.sha256[:16]) for image in images]


def read_folder(root: Path) -> list[ImageRecord]:
    found = find_images(root)
    checks = check_images(root, [item.path for item in found])
    images = [ImageRecord(item.path, item.label, checks[item.path].sha256, checks[item.path].phash) for item in found]
    return Splitter().grouped(images, root)


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


def test_find_label_conflicts_finds_copies_in_two_classes_but_not_twice_in_one():
    images = random_images({"lily": 2, "orchid": 2})
    assert find_label_conflicts(images, ["a", "a", "b", "c"]) == []
    assert find_label_conflicts(images, ["a", "b", "b", "b"]) == [images[1:]]


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


def random_groups(count: int) -> list[list[int]]:
    """Return the group of each of `count` images, some of which are near an earlier one."""
    rng = random.Random(0)
    bits, groups = list[int](), list[list[int]]()
    for number in range(count):
        group = [number]
        if number % 4 == 3:
            flips = rng.sample(range(256), rng.choice([0, 1, 30, 63, 64, 65, 70]))
            earlier = rng.choice(bits)
            if len(flips) <= 64:
                group = groups[bits.index(earlier)]
                group.append(number)
            bits.append(earlier ^ sum(1 << flip for flip in flips))
        else:
            bits.append(rng.getrandbits(256))
        groups.append(group)
    return groups


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
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1000)]
    images = [
        ImageRecord(
            f"{number % 3}/{number}", str(number % 3), sha256, "", group=min(digests[each] for each in group)[:16]
        )
        for number, (sha256, group) in enumerate(zip(digests, random_groups(1000), strict=True))
    ]
    assert split_sha256(assign_splits(images, **settings)) == digest  # type: ignore[arg-type]


GROUPS = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=8), min_size=1, max_size=3)


def images_in_groups(classes: list[list[int]]) -> list[ImageRecord]:
    """Return images of classes that have groups of these sizes."""
    return [
        ImageRecord(f"{label}/{group}/{number}", str(label), f"{number:064x}", "", group=f"{label}-{group}")
        for label, sizes in enumerate(classes)
        for group, size in enumerate(sizes)
        for number in range(size)
    ]


@given(GROUPS, st.sampled_from([0.05, 0.2, 0.5]), st.integers(0, 9))
def test_assign_splits_fills_val_as_well_as_groups_of_any_sizes_allow(
    classes: list[list[int]], fraction: float, seed: int
):
    records = assign_splits(images_in_groups(classes), fraction, seed=seed)
    assert find_leaks(records) == []
    for label, sizes in enumerate(classes):
        found = sum(record.label == str(label) and record.split == "val" for record in records)
        wanted = max(round(sum(sizes) * fraction), 1)
        possible = {sum(some) for number in range(1, len(sizes)) for some in combinations(sizes, number)}
        assert abs(found - wanted) == min(abs(each - wanted) for each in possible)


@given(GROUPS, st.integers(0, 9))
def test_assign_splits_leaves_groups_of_each_class_for_val_and_train_beside_a_large_test(
    classes: list[list[int]], seed: int
):
    records = assign_splits(images_in_groups(classes), 0.3, 0.6, seed=seed)
    assert find_leaks(records) == []
    for split in ("train", "val"):
        assert {record.label for record in records if record.split == split} == {*map(str, range(len(classes)))}


@given(st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=12), min_size=1, max_size=3), st.integers(2, 4))
def test_folds_have_each_class_and_differ_by_less_than_its_largest_group(classes: list[list[int]], folds: int):
    images = images_in_groups(classes)
    split = [assign_splits(images, folds=folds, fold=fold) for fold in range(folds)]
    for label, sizes in enumerate(classes):
        counts = [sum(each.label == str(label) and each.split == "val" for each in records) for records in split]
        assert sum(counts) == sum(sizes)
        assert min(counts) > 0
        assert max(counts) - min(counts) <= max(sizes)
    assert all(find_leaks(records) == [] for records in split)


def test_folds_are_even_where_single_images_can_make_them_even():
    images = images_in_groups([[7, 1, 1, 1, 1, 1, 1, 1]])
    for seed in range(9):
        sides = [assign_splits(images, folds=2, fold=fold, seed=seed) for fold in range(2)]
        assert [sum(record.split == "val" for record in records) for records in sides] == [7, 7]


def test_describe_shortages_names_class_group_and_share():
    records = assign_splits(images_in_groups([[29, 1], [1] * 30]))
    (line,) = describe_shortages(records, 0.2)
    assert line == (
        "class 0: val has 1 of its 30 images, not 6: 29 of them (97%) are in one group of near duplicates, 0-0 "
        "(such as 0/0/0)"
    )


def test_group_summary_says_how_many_groups_and_how_large():
    records = assign_splits(images_in_groups([[3, 2, 1, 1], [1, 1]]))
    assert group_summary(records) == "Near duplicates: 5 images in 2 groups of 2 to 3, each in one split"
    assert group_summary(records[-2:]) == "Near duplicates: none"
