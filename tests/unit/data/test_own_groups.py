from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers.data.own_groups import join_groups, pattern_groups
from flowers.data.sources.folder import FolderSource
from flowers.data.splits import ImageRecord, assign_folds, assign_splits, group_summary
from flowers.data.splitter import Splitter
from flowers.settings.schema.values import check_group_pattern

PATHS = ["a/p1_1.jpg", "a/p1_2.jpg", "b/p2_1.jpg"]


def test_pattern_groups_are_what_the_parentheses_match():
    assert pattern_groups(PATHS, "re:/([^_]+)_") == ["p1", "p1", "p2"]
    assert pattern_groups(PATHS, "re:^([^/]+)/") == ["a", "a", "b"]
    assert pattern_groups(PATHS, "re:(p1)|(p2)") == ["p1", "p1", "p2"]
    assert pattern_groups(PATHS, "re:^(.)/(p.)") == ["a\np1", "a\np1", "b\np2"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("re:^(x)", "3 of the 3 paths do not match, such as a/p1_1.jpg, a/p1_2.jpg and 1 more: expected"),
        ("re:(p1)_", "1 of the 3 paths do not match, such as b/p2_1.jpg"),
        ("re:(p)", "finds the same group in all 3 paths, such as p in a/p1_1.jpg"),
        ("re:(.*)", "finds another group in each of the 3 paths"),
    ],
)
def test_pattern_groups_refuse_what_holds_nothing_together(pattern: str, message: str):
    with pytest.raises(ValueError, match=message):
        pattern_groups(PATHS, pattern)


@pytest.mark.parametrize("pattern", ["re:", "re:abc", "re:(", "(a)", "re:(?:a)"])
def test_check_group_pattern_wants_a_regular_expression_with_a_group(pattern: str):
    with pytest.raises(ValueError, match=r"^$"):
        check_group_pattern(pattern)


def test_join_groups_holds_together_what_either_kind_does_and_chains_of_them():
    groups = ["c", "b", "b", "a", "d"]
    assert join_groups(groups, ["x", "x", "y", "y", ""]) == ["a", "a", "a", "a", "d"]
    assert join_groups(groups, ["", "", "", "", "z"]) == groups


@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 12), st.sampled_from("ab")), min_size=12, max_size=60),
    st.integers(0, 5),
    st.sampled_from([0, 2, 3]),
)
def test_a_group_of_either_kind_is_never_on_both_sides(rows: list[tuple[int, int, str]], seed: int, folds: int):
    rows = [*rows, *((100 + number, 100 + number, label) for number in range(4) for label in "ab")]
    names = join_groups([f"{near:03}" for near, _, _ in rows], [f"{own}" for _, own, _ in rows])
    images = [
        ImageRecord(f"{number}.jpg", label, f"{number:064x}", "", group=name)
        for number, ((_, _, label), name) in enumerate(zip(rows, names, strict=True))
    ]
    records = assign_splits(images, 0.3, 0.2, folds, 0, seed)
    split_of = {record.path: record.split for record in records}
    fold_of = dict(zip((record.path for record in records), assign_folds(records, 2, seed), strict=True))
    sides = defaultdict[str, set[tuple[str, int]]](set)
    for number, (near, own, _) in enumerate(rows):
        for name in (f"near {near}", f"own {own}"):
            sides[name].add((split_of[f"{number}.jpg"], fold_of[f"{number}.jpg"]))
    assert {len(each) for each in sides.values()} == {1}


def test_split_by_a_pattern_holds_its_groups_and_copies_together_in_all_folds(folder: Path, photo):
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(path.with_name(f"plant{number // 4}_{path.name}"))
    photo(0).save(folder / "lily" / "plant9_copy.png")  # of orchid/00.png, and of no other plant
    (folder / "lily" / "plant9_copy.png").rename(folder / "orchid" / "plant9_copy.png")
    for fold in range(2):
        splitter = Splitter(group_by=r"re:(plant\d)_", folds=2, fold=fold)
        records = splitter.split(FolderSource(folder))
        sides = defaultdict[str, set[str]](set)
        for record in records:
            sides[record.path.partition("/")[2][:6]].add(record.split)
        assert len(sides) == 6
        assert {len(each) for each in sides.values()} == {1}
        assert next(r.split for r in records if "copy" in r.path) == next(r.split for r in records if "_00" in r.path)
        assert {record.split for record in records} == {"train", "val"}
        assert group_summary(records).startswith("Groups of your own, with near duplicates: 21 images in ")


def test_split_by_a_pattern_is_refused_before_a_photo_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowers.data.sources.folder.check_images", lambda *_: pytest.fail("photos were read"))
    with pytest.raises(ValueError, match="20 of the 20 paths do not match"):
        Splitter(group_by="re:^(x)").split(FolderSource(folder))
