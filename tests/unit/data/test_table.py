import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowers.data.datamodule import ImageDataModule
from flowers.data.sources.build import build_source
from flowers.data.splitter import Splitter


def write(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def photos(folder: Path) -> list[tuple[str, str]]:
    return [(path.relative_to(folder).as_posix(), path.parent.name) for path in sorted(folder.rglob("*.png"))]


def table_of(folder: Path, header: Sequence[str] = ("path", "label"), **columns: Any) -> Path:
    extra = [columns[name] for name in header[2:]]
    rows = [(*row, *(each[number] for each in extra)) for number, row in enumerate(photos(folder))]
    return write(folder / "labels.csv", [header, *rows])


def read(table: Path, **settings: Any) -> list[tuple[str, str, str, str]]:
    source = build_source({"table": table, "root": None, **settings})
    return [(image.path, image.label, image.split, image.own_group) for image in source.images]


def test_table_and_folder_of_the_same_photos_have_the_same_images_and_split(folder: Path):
    table = ImageDataModule.from_settings(table=table_of(folder), test_fraction=0.2)
    own = ImageDataModule.from_settings(folder, test_fraction=0.2)
    assert table.images == own.images
    assert table.records == own.records
    assert table.split_digest == own.split_digest


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_table_is_read_with_any_usual_delimiter_and_encoding(folder: Path, delimiter: str, encoding: str):
    rows = [(path, {"lily": "Türkenbund, weiß", "orchid": "Orchidée"}[label]) for path, label in photos(folder)]
    table = write(folder / "labels.csv", [("file", "species"), *rows], delimiter, encoding)
    assert [row[:2] for row in read(table)] == rows


def test_table_names_photos_without_endings_in_a_folder_and_ids_keep_their_zeros(folder: Path):
    rows = [(Path(path).stem, label) for path, label in photos(folder)]
    assert ("00", "orchid") in rows
    table = write(folder.parent / "train.csv", [("id", "class"), *rows])
    assert [row[:2] for row in read(table)] == [(f"photos/{path}", label) for path, label in photos(folder)]


def test_table_takes_absolute_paths_and_backslashes(folder: Path):
    rows = [(str(folder / path), label) for path, label in photos(folder)]
    rows[0] = photos(folder)[0][0].replace("/", "\\"), rows[0][1]
    table = write(folder / "labels.csv", [("path", "label"), *rows])
    assert [row[:2] for row in read(table)] == photos(folder)


def test_table_outside_its_folder_names_the_root_that_holds_all_photos(folder: Path, tmp_path: Path):
    (tmp_path / "lists").mkdir()
    table = write(
        tmp_path / "lists" / "labels.csv", [("path", "label"), *((f"../photos/{p}", c) for p, c in photos(folder))]
    )
    with pytest.raises(ValueError, match=rf"names 20 photos outside of .*lists, such as .*data.root={tmp_path}"):
        read(table)
    absolute = write(
        tmp_path / "lists" / "absolute.csv", [("path", "label"), *((str(folder / p), c) for p, c in photos(folder))]
    )
    with pytest.raises(ValueError, match=r"outside of"):
        read(absolute)
    assert [row[0] for row in read(absolute, root=tmp_path)] == [f"photos/{path}" for path, _ in photos(folder)]


def test_table_never_fetches_an_address(folder: Path):
    table = write(folder / "labels.csv", [("path", "label"), ("https://127.0.0.1/1.jpg", "lily"), *photos(folder)])
    with pytest.raises(ValueError, match=r"names 1 photos by their addresses.* nothing is downloaded"):
        read(table)


def test_table_of_json_lines_is_read(folder: Path):
    lines = [json.dumps({"image": path, "label": label, "more": [1]}) for path, label in photos(folder)]
    table = folder / "labels.jsonl"
    table.write_text("\n".join(lines) + "\n")
    assert [row[:2] for row in read(table)] == photos(folder)
    table.write_text("\n".join([*lines, "[1]"]))
    with pytest.raises(ValueError, match=r"line 21: expected an object"):
        read(table)


def test_table_with_splits_keeps_them_and_draws_val_where_there_is_none(folder: Path):
    words = ["Training", "validation", "holdout", "train", "train"] * 4
    source = build_source({"table": table_of(folder, ("path", "label", "split"), split=words), "root": None})
    found = {record.path: record.split for record in Splitter().split(source)}
    names = {"Training": "train", "train": "train", "validation": "val", "holdout": "test"}
    assert found == {path: names[word] for (path, _), word in zip(photos(folder), words, strict=True)}
    words = ["test" if number % 5 == 2 else "train" for number in range(20)]
    source = build_source({"table": table_of(folder, ("path", "label", "split"), split=words), "root": None})
    drawn = {record.path: record.split for record in Splitter().split(source)}
    assert {path for path, split in drawn.items() if split == "test"} == {
        path for (path, _), word in zip(photos(folder), words, strict=True) if word == "test"
    }
    assert "val" in drawn.values()


def test_table_with_numbers_of_folds_has_no_splits(folder: Path):
    table = table_of(folder, ("path", "label", "fold"), fold=[str(number % 5) for number in range(20)])
    assert {row[2] for row in read(table)} == {""}


def test_table_names_all_rows_that_cannot_be_used_and_skip_leaves_them_out(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    rows: list[tuple[str, str]] = photos(folder)
    bad = [("gone.png", "lily"), ("", "lily"), (rows[0][0], "orchid"), (rows[1][0], "")]
    table = write(folder / "labels.csv", [("path", "label"), *rows[:1], *rows[2:], *bad])
    with pytest.raises(ValueError, match="4 of the 23 rows") as error:
        read(table)
    for text in (
        "1 whose photo does not exist: gone.png",
        "1 without a path: line 22",
        f"1 with another label, split or group than an earlier row of the same photo: {rows[0][0]}",
        f"1 without a label: {rows[1][0]}",
        "data.on_corrupt=skip",
    ):
        assert text in str(error.value)
    assert [row[:2] for row in read(table, on_corrupt="skip")] == rows[2:]
    assert "ignoring 4 rows" in caplog.text


def test_table_with_the_same_row_twice_has_the_photo_once(folder: Path):
    table = write(folder / "labels.csv", [("path", "label"), *photos(folder), photos(folder)[3]])
    assert [row[:2] for row in read(table)] == photos(folder)


def test_table_without_any_of_its_photos_says_where_they_were_looked_for(folder: Path, tmp_path: Path):
    table = write(tmp_path / "labels.csv", [("path", "label"), ("a.jpg", "x"), ("b.jpg", "y")])
    with pytest.raises(
        ValueError, match=rf"none of the 2 photos of .* is below {tmp_path}, such as a.jpg: .*data.root"
    ):
        read(table, on_corrupt="skip")


def test_table_names_a_photo_that_may_be_several_files(folder: Path):
    for name in ("lily", "orchid"):
        (folder / name / "same.png").write_bytes((folder / "lily" / "01.png").read_bytes())
    table = write(folder / "labels.csv", [("path", "label"), *photos(folder)[:-1], ("same", "lily")])
    with pytest.raises(ValueError, match=r"any of several files: same \(lily/same.png, orchid/same.png\)"):
        read(table)


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        (("path", "label"), {"label": "lable"}, r"has no column lable \(data.columns.label\): did you mean label\?"),
        (("path", "species", "class"), {}, r"has the columns class, species: which one holds the labels\?"),
        (("path", "a", "b"), {}, r"has the columns a, b: which one holds the labels\?"),
        (("path", "label", "label"), {}, r"has two columns label"),
        (("path", "label", "group"), {"label": "group"}, r"20 labels for 20 photos in the column group"),
    ],
)
def test_table_refuses_columns_that_are_not_there_or_not_certain(
    folder: Path, header: tuple[str, ...], columns: dict[str, str], message: str
):
    rows = [(*row, f"{number}")[: len(header)] for number, row in enumerate(photos(folder))]
    table = write(folder / "labels.csv", [header, *rows])
    with pytest.raises(ValueError, match=message):
        read(table, columns=columns)


def test_table_without_a_first_line_of_names_says_so(folder: Path):
    table = write(folder / "labels.csv", [(*row, "x") for row in photos(folder)])
    with pytest.raises(ValueError, match=r"begins with the photo lily/01.png: expected a first line with the names"):
        read(table)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 20, "has the same group for all photos in the column group"),
        ([str(number) for number in range(20)], "has another group for each photo in the column group"),
        (["a", "", *["b"] * 18], r"1 without a group: lily/03.png"),
    ],
)
def test_table_refuses_groups_that_hold_nothing_together(folder: Path, groups: list[str], message: str):
    table = table_of(folder, ("path", "label", "group"), group=groups)
    with pytest.raises(ValueError, match=message):
        read(table)
    if groups[-1] != "b":
        assert len(read(table, columns={"group": False})) == 20


def test_table_with_a_cell_too_many_names_the_line(folder: Path):
    table = folder / "labels.csv"
    table.write_text("path,label\nlily/01.png,lily\norchid/00.png,orchid,\n")
    with pytest.raises(ValueError, match=r"line 3: 3 cells, expected 2"):
        read(table)


def test_table_says_which_columns_it_takes_and_what_it_leaves(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    table = write(folder / "labels.csv", [("Image Path", "Species"), *photos(folder)[:-1]])
    read(table)
    assert "taking the columns {path: Image Path, label: Species}" in caplog.text
    assert "1 files beside the photos are not used" in caplog.text
