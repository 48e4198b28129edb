import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from flowers.data.folder import find_images
from flowers.data.images import check_images
from flowers.data.splits import (
    ImageRecord,
    assign_splits,
    find_label_conflicts,
    find_leaks,
    load_split,
    save_split,
    split_sha256,
    split_to_csv,
)


def made_up(classes: dict[str, int]) -> list[ImageRecord]:
    """Photos whose hashes are random: no two are alike."""
    rng = random.Random(0)
    return [
        ImageRecord(f"{label}/{number}", label, f"{rng.getrandbits(256):064x}", f"{rng.getrandbits(256):064x}")
        for label, count in classes.items()
        for number in range(count)
    ]


def of_folder(root: Path) -> list[ImageRecord]:
    found = find_images(root)
    verdicts = check_images(root, [item.path for item in found])
    return [ImageRecord(item.path, item.label, verdicts[item.path].sha256, verdicts[item.path].phash) for item in found]


def test_each_class_is_split_eight_to_two():
    rows = assign_splits(made_up({"a": 100, "b": 35}))
    assert Counter((row.label, row.split) for row in rows) == {
        ("a", "train"): 80,
        ("a", "val"): 20,
        ("b", "train"): 28,
        ("b", "val"): 7,
    }


def test_the_split_depends_on_contents_and_seed_alone():
    made = made_up({"a": 50, "b": 50})
    moved = [photo._replace(path=f"elsewhere/{photo.sha256[:5]}") for photo in reversed(made)]
    sides = {row.sha256: row.split for row in assign_splits(made)}
    assert sides == {row.sha256: row.split for row in assign_splits(moved)}
    assert sides != {row.sha256: row.split for row in assign_splits(made, seed=1)}


def test_every_photo_is_in_val_in_exactly_one_fold_and_test_stays():
    made = made_up({"a": 43, "b": 27})
    folds = [assign_splits(made, test_fraction=0.1, folds=5, fold=fold) for fold in range(5)]
    tests = [{row.path for row in rows if row.split == "test"} for rows in folds]
    vals = [row.path for rows in folds for row in rows if row.split == "val"]
    assert all(test == tests[0] for test in tests)
    assert sorted([*vals, *tests[0]]) == sorted(photo.path for photo in made)
    sizes = [Counter(row.label for row in rows if row.split == "val") for rows in folds]
    assert all(max(size[label] for size in sizes) - min(size[label] for size in sizes) <= 1 for label in "ab")


def test_a_duplicate_never_crosses_the_split(folder: Path, photo):
    for number in range(10):
        path = folder / "orchid" / f"{2 * number:02}.png"
        (folder / "orchid" / f"copy{number}.png").write_bytes(path.read_bytes())
    for seed in range(5):
        rows = assign_splits(of_folder(folder), seed=seed)
        assert find_leaks(rows) == []
        sides = {row.path: row.split for row in rows}
        assert all(sides[f"orchid/copy{n}.png"] == sides[f"orchid/{2 * n:02}.png"] for n in range(10))


def test_a_photo_saved_again_smaller_and_brighter_never_crosses_the_split(folder: Path, photo):
    for number in range(20):
        again = ImageEnhance.Brightness(photo(number)).enhance(1.1).resize((72, 60), Image.Resampling.LANCZOS)
        again.save(folder / "lily" / f"again{number}.jpg", quality=80)
    for seed in range(5):
        sides = {row.path: row.split for row in assign_splits(of_folder(folder), seed=seed)}
        originals = {int(Path(path).stem): side for path, side in sides.items() if "again" not in path}
        assert all(sides[f"lily/again{number}.jpg"] == side for number, side in originals.items())


def test_unlike_photos_are_groups_of_their_own(folder: Path):
    assert len({row.group for row in assign_splits(of_folder(folder))}) == 20


def test_one_photo_under_two_classes_is_a_contradiction_and_twice_under_one_is_not(folder: Path):
    content = (folder / "lily" / "01.png").read_bytes()
    (folder / "lily" / "twin.png").write_bytes(content)
    assert find_label_conflicts(of_folder(folder)) == []
    (folder / "orchid" / "twin.png").write_bytes(content)
    (same,) = find_label_conflicts(of_folder(folder))
    assert [photo.path for photo in same] == ["lily/01.png", "lily/twin.png", "orchid/twin.png"]


def test_a_saved_split_loads_as_it_was_and_its_digest_is_that_of_the_file(tmp_path: Path):
    rows = assign_splits(made_up({'a, "b"': 10, "薔薇": 10}))
    save_split(rows, tmp_path / "split.csv")
    assert load_split(tmp_path / "split.csv") == rows
    import hashlib

    assert split_sha256(rows) == hashlib.sha256((tmp_path / "split.csv").read_bytes()).hexdigest()


HEADER = "path,class,split,group,sha256\n"


@pytest.mark.parametrize(
    "content",
    ["", "path,class\na,b\n", HEADER, HEADER + "a,b,dev,c,d\n", HEADER + "a,b\n", HEADER + "a,b,val,c,d\n" * 2],
)
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, content: str):
    (tmp_path / "split.csv").write_text(content, encoding="utf-8")
    for name in ("split.csv", "missing.csv"):
        with pytest.raises(ValueError, match="wanted"):
            load_split(tmp_path / name)


def test_a_split_that_a_spreadsheet_has_saved_is_read(tmp_path: Path):
    rows = assign_splits(made_up({"a": 10, "b": 10}))
    (tmp_path / "split.csv").write_text(split_to_csv(rows).replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert load_split(tmp_path / "split.csv") == rows


@pytest.mark.parametrize(
    "settings", [{"val_fraction": 1.0}, {"test_fraction": 0.9}, {"folds": 5, "fold": 5}, {"folds": 1}, {"folds": 30}]
)
def test_shares_and_folds_that_cannot_be_are_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="wanted"):
        assign_splits(made_up({"a": 20, "b": 20}), **settings)  # type: ignore[arg-type]
