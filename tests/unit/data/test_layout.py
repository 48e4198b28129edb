import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers.data.sources.folder import FolderSource
from flowers.data.sources.layout import find_images
from flowers.data.sources.listing import expand_image_paths, is_junk
from flowers.data.splitter import Splitter

JUNK = [
    *("@eaDir", "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", "__MACOSX", "lost+found", "#recycle"),
    *(".ipynb_checkpoints", ".Trash-1000", "__pycache__", "@Recycle", "@Recently-Snapshot", ".@__thumb", "#snapshot"),
    *("Thumbs.db", "desktop.ini", "Desktop.ini", "ehthumbs.db", "Icon\r", "._1.jpg", ".DS_Store", "found.000"),
    *("1.jpg:Zone.Identifier", "1.jpg\uf03aZone.Identifier", "1.jpg@SynoEAStream", "Thumbs.db:encryptable"),
]


def create_files(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def labels(root: Path, **settings: Any) -> dict[str, tuple[str, str | None]]:
    return {file.path: (file.label, file.split) for file in find_images(root, **settings)}


@pytest.mark.parametrize("name", JUNK)
def test_is_junk_is_neither_a_class_nor_a_photo_for_any_program(tmp_path: Path, name: str):
    root = create_files(tmp_path, "rose/1.jpg", "tulip/2.jpg", f"{name}/3.jpg", f"rose/{name}/more/4.jpg")
    create_files(tmp_path, f"tulip/x/{name}")
    assert labels(root) == {"rose/1.jpg": ("rose", None), "tulip/2.jpg": ("tulip", None)}
    photos = [root / "rose/1.jpg", root / "tulip/2.jpg"]
    assert expand_image_paths(str(root)) == expand_image_paths(f"{root}/**") == expand_image_paths(f"{root}/*/*.jpg")
    assert expand_image_paths(str(root)) == photos
    assert expand_image_paths(str(root / name / "3.jpg")) == [root / name / "3.jpg"]  # named itself


@given(st.from_regex(r"[A-Za-z0-9$#@~][\w $#@~+.-]{0,8}[A-Za-z0-9]", fullmatch=True))
def test_is_junk_keeps_the_names_of_classes_and_ignores_case(name: str):
    assert is_junk(name) == is_junk(name.upper()) == is_junk(name.lower())
    assert not is_junk(f"{name} rose")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train_images", "test_images"), ("training_set", "test_set"), ("seg_train", "seg_test")),
        *(("TrainImages", "TestImages"), ("trainset", "testset"), ("train2017", "test2017"), ("01 Train", "02 Test")),
        *(("asl_alphabet_train", "asl_alphabet_test"), ("Training Data", "Testing Data"), ("imgs-trn", "imgs-tst")),
    ],
)
def test_find_images_takes_folders_that_share_their_classes_for_splits(tmp_path: Path, train: str, test: str):
    root = create_files(tmp_path, f"{train}/sea/1", f"{train}/wood/2", f"{test}/sea/3", f"{test}/wood/4")
    expected = [("sea", "train"), ("wood", "train"), ("sea", "test"), ("wood", "test")]
    assert labels(root) == dict(
        zip([f"{train}/sea/1", f"{train}/wood/2", f"{test}/sea/3", f"{test}/wood/4"], expected, strict=True)
    )


@pytest.mark.parametrize("other", ["valid_test", "val_images", "validation_set", "dev_set", "valid2"])
def test_find_images_takes_what_else_is_beside_train_for_val(tmp_path: Path, other: str):
    root = create_files(tmp_path, "train/a/1", "train/b/2", f"{other}/a/3")
    assert labels(root)[f"{other}/a/3"] == ("a", "val")


def test_find_images_opens_the_nested_folders_of_an_archive_and_leaves_out_photos_without_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    files = [
        "seg_train/seg_train/sea/1",
        "seg_train/seg_train/wood/2",
        "seg_test/seg_test/sea/3",
        "seg_pred/seg_pred/4",
    ]
    with caplog.at_level("INFO"):
        found = labels(create_files(tmp_path, *files))
    assert found == dict(zip(files, [("sea", "train"), ("wood", "train"), ("sea", "test")], strict=False))
    assert "seg_pred as photos without labels, ignored" in caplog.text


def test_find_images_takes_splits_inside_of_the_classes(tmp_path: Path):
    files = ["cat/train/1", "cat/test/2", "dog/train/3", "dog/test/4"]
    assert labels(create_files(tmp_path, *files)) == dict(
        zip(files, [("cat", "train"), ("cat", "test"), ("dog", "train"), ("dog", "test")], strict=True)
    )


@pytest.mark.parametrize(
    "files",
    [
        ("left/2023/1", "left/2024/2", "right/2023/3", "right/2024/4"),
        ("rose/batch_1/1", "rose/batch_2/2", "tulip/batch_1/3", "tulip/batch_2/4"),
        ("rose/IMG/1", "rose/raw/2", "tulip/IMG/3", "tulip/raw/4"),
        ("train station/1", "test tube/2"),
        ("toy train/a/1", "test tube/b/2"),
        ("cat/train/1", "dog/house/2"),
        ("bird/owl/1", "bird/tit/2", "mammal/cat/3", "mammal/dog/4"),
        ("left/a/1", "left/2", "left/b/3", "right/a/4", "right/b/5"),
    ],
)
def test_find_images_takes_folders_that_are_no_splits_for_classes_as_before(tmp_path: Path, files: tuple[str, ...]):
    found = labels(create_files(tmp_path, *files))
    assert found == {file: (file.partition("/")[0], None) for file in files}


@pytest.mark.parametrize(
    ("files", "answers"),
    [
        (("part_a/sea/1", "part_a/wood/2", "part_b/sea/3", "part_b/wood/4"), "classes|subfolders"),
        (("color/sea/1", "color/wood/2", "grey/sea/3", "grey/wood/4"), "classes|subfolders"),
        (("train_1/a/1", "train_1/b/1", "train_2/a/2", "test_1/b/3"), "splits|classes"),
        (("train_images/1", "test_images/2"), "classes"),
        (("train_images/a/1", "train_images/b/1", "test_images/2"), "splits|classes"),
        (("train_images/a/1", "train_images/b/1", "test_images/a/2", "masks/a/3"), "classes"),
        (("train/a/1", "train/b/2", "test/a/3"), "splits"),
    ],
)
def test_find_images_asks_in_one_line_where_it_is_not_certain(tmp_path: Path, files: tuple[str, ...], answers: str):
    root = create_files(tmp_path, *files)
    with pytest.raises(ValueError, match=r"data\.layout=") as caught:
        find_images(root)
    assert "\n" not in str(caught.value)
    for answer in answers.split("|"):
        assert f"data.layout={answer}" in str(caught.value)
        assert labels(root, layout=answer)
    assert all(split is None for _, split in labels(root, layout="classes").values())


@pytest.mark.parametrize("notes", [("meta/classes.txt",), ("meta/train.json", "annotations/all.xml", "doc/README.md")])
def test_find_images_names_the_folder_that_was_meant_if_the_others_hold_only_notes(
    tmp_path: Path, notes: tuple[str, ...]
):
    root = create_files(tmp_path, "images/pie/1.jpg", "images/soup/2.jpg", *notes)
    meant = re.escape(f"in images, and the others hold no photo: give data.root={root / 'images'}")
    with pytest.raises(ValueError, match=meant):
        find_images(root)
    assert {label for label, _ in labels(create_files(root, "meta/photo.jpg")).values()} == {"images", "meta"}


def test_find_images_names_the_folder_above_a_photo(tmp_path: Path):
    root = create_files(tmp_path, "rose/1.jpg", "tulip/2.jpg")
    meant = f"1.jpg is a file: expected a folder with one subfolder per class: did you mean data.root={root}?"
    with pytest.raises(ValueError, match=re.escape(meant)):
        find_images(root / "rose" / "1.jpg")
    with pytest.raises(ValueError, match=r"one subfolder per class$"):
        find_images(create_files(tmp_path / "a", "b/1.jpg") / "b" / "1.jpg")


def test_find_images_ignores_a_copy_of_the_folders_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = create_files(tmp_path, "cells/sick/1", "cells/well/2", "sick/1", "well/2")
    assert {label for label, _ in labels(root).values()} == {"sick", "well"}
    assert f"ignoring cells in {root}: its folders have the names of those beside it" in caplog.text
    assert {label for label, _ in labels(root, layout="classes").values()} == {"cells", "sick", "well"}
    assert len(labels(create_files(tmp_path / "b", "a/b/1", "a/x/2", "b/3", "c/4"))) == 4


def test_find_images_looks_into_the_only_folder_of_a_split(tmp_path: Path):
    root = create_files(
        tmp_path, "Final_Training/Images/00000/1", "Final_Training/Images/00001/2", "Final_Test/Images/3"
    )
    found = labels(root, layout="splits")
    assert dict(found.values()) == {"00000": "train", "00001": "train"}


def test_find_images_takes_no_folder_of_lists_for_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = create_files(tmp_path, "rose/1.jpg", "tulip/2.jpg", "labels/train.txt", "labels/test.csv")
    assert {label for label, _ in labels(root).values()} == {"rose", "tulip"}
    assert "ignoring folders without a photo" in caplog.text


def test_find_images_names_the_split_that_has_all_classes(tmp_path: Path):
    root = create_files(tmp_path, "train/good/1", "test/good/2", "test/crack/3")
    with pytest.raises(
        ValueError, match=f"lacks the class.* crack: .*, or data.root={root / 'test'} to split its photos"
    ):
        find_images(root, "splits")


def test_find_images_lays_folders_out_as_the_setting_says(tmp_path: Path):
    root = create_files(tmp_path, "part_a/sea/1", "part_b/sea/2", "part_b/wood/3", "part_b/wood/x/4")
    assert [label for label, _ in labels(root, layout="subfolders").values()] == ["sea", "sea", "wood", "wood"]
    assert {label for label, _ in labels(root, layout="classes").values()} == {"part_a", "part_b"}
    with pytest.raises(ValueError, match=r"data\.layout=splits: .* part_a, part_b: expected names with train"):
        find_images(root, "splits")
    with pytest.raises(ValueError, match=r"data\.layout=odd: expected one of auto, classes"):
        find_images(root, "odd")  # type: ignore[arg-type]


def test_find_images_reads_folders_of_older_runs_as_they_did(tmp_path: Path):
    root = create_files(tmp_path, "part_a/sea/1", "part_a/wood/2", "part_b/sea/3", "part_b/wood/4")
    assert {label for label, _ in labels(root, layout=None).values()} == {"part_a", "part_b"}
    split = create_files(tmp_path / "split", "train/a/1", "train/b/2", "val/a/3")
    assert labels(split, layout=None)["val/a/3"] == ("a", "val")


@pytest.mark.parametrize(
    "names",
    [("Rose", "rose"), ("tulip", "tulip "), ("sea lion", "sea_lion"), ("Straße", "strasse"), ("\uff4cily", "lily")],
)
def test_find_images_names_similar_classes_and_joins_them_on_request(
    tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
):
    root = create_files(tmp_path, f"{names[0]}/1", f"{names[0]}/2", f"{names[1]}/3", "other/4")
    assert {label for label, _ in labels(root).values()} == {*names, "other"}
    assert "data.merge_similar_names=true" in caplog.text
    assert {label for label, _ in labels(root, merge_similar_names=True).values()} == {names[0], "other"}


def test_find_images_takes_two_forms_of_one_name_for_one_class_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    root = create_files(tmp_path, "Bl\u00fcte/1", "Blu\u0308te/2", "other/3")
    assert [label for label, _ in labels(root).values()].count("Bl\u00fcte") == 2
    assert "joining folders whose names differ only in how Unicode composes letters: Bl\u00fcte" in caplog.text


def test_find_images_hints_at_the_folder_of_classes_in_a_folder(tmp_path: Path):
    create_files(tmp_path, "mum's photos/rose/1", "mum's photos/tulip/2")
    with pytest.raises(ValueError, match=r"at least two, such as data\.root="):
        find_images(tmp_path)


def test_source_draws_val_from_train_where_only_train_and_test_are_folders(folder: Path, tmp_path: Path):
    for path in folder.glob("*/*.png"):
        part = tmp_path / "d" / ("seg_test" if path.name.endswith("2.png") else "seg_train") / path.parent.name
        part.mkdir(parents=True, exist_ok=True)
        (part / path.name).write_bytes(path.read_bytes())
    records = Splitter(val_fraction=0.25).split(FolderSource(tmp_path / "d"))
    assert {record.split for record in records} == {"train", "val", "test"}
    assert all((record.split == "test") == record.path.startswith("seg_test/") for record in records)
    assert {record.label for record in records} == {"lily", "orchid"}
