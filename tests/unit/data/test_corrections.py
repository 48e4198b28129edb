from pathlib import Path

import pytest

from flowers.data.corrections import Correction, Corrections, load_corrections
from flowers.data.splits import ImageRecord, SplitRecord
from flowers.runtime.text import read_csv

A, B, C, D = (letter * 64 for letter in "abcd")
IMAGES = [
    ImageRecord(f"{label}/{digest[0]}.jpg", label, digest, "")
    for digest, label in zip((A, B, C, D), "ttrr", strict=True)
]
KEEP, RELABEL, DROP = (
    Correction("t/a.jpg", "t", "keep", "", A),
    Correction("t/b.jpg", "t", "relabel", "r", B),
    Correction("r/c.jpg", "r", "drop", "", C),
)


def test_corrections_relabel_and_drop_by_digest_wherever_the_photo_is_now():
    corrections = Corrections("c.csv", (KEEP, RELABEL, DROP))
    renamed = [image._replace(path=f"moved/{image.path}") for image in IMAGES]
    assert [(image.path, image.label) for image in corrections.apply(renamed)] == [
        ("moved/t/a.jpg", "t"),
        ("moved/t/b.jpg", "r"),
        ("moved/r/d.jpg", "r"),
    ]
    records = [SplitRecord(image.path, image.label, "val", "g", image.sha256) for image in IMAGES]
    once = corrections.apply(records)
    assert corrections.apply(once) == once
    assert {record.split for record in once} == {"val"}


def test_corrections_survive_a_file_with_hostile_names(tmp_path: Path):
    hostile = Correction('=cmd|"x"!A1\n<script>', "-class", "relabel", "@r", B)
    Corrections("x", (KEEP, hostile)).save(tmp_path / "c.csv")
    assert load_corrections(tmp_path / "c.csv").lines == (KEEP, hostile)
    assert "\"'=cmd" in (tmp_path / "c.csv").read_text()  # no spreadsheet takes it for a formula


def test_the_digest_of_corrections_is_of_what_they_change():
    digest = Corrections("a", (KEEP, RELABEL, DROP)).sha256
    assert Corrections("b", (DROP, RELABEL._replace(path="moved.jpg"))).sha256 == digest
    assert Corrections("a", (KEEP, RELABEL)).sha256 != digest


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([KEEP._replace(verdict="kep")], r"line 2: verdict kep: expected keep, relabel, drop"),
        ([RELABEL._replace(new_label="")], r"line 2: no new class for t/b\.jpg"),
        ([DROP._replace(new_label="t")], "verdict drop with the new class t: expected relabel"),
        ([KEEP._replace(sha256="abc")], r"no SHA-256 for t/a\.jpg: expected 64"),
        ([RELABEL, RELABEL._replace(verdict="drop", new_label="")], "two verdicts on one photo: relabel as r for t/b"),
    ],
)
def test_load_corrections_names_a_wrong_line(lines: list[Correction], message: str, tmp_path: Path):
    Corrections("x", tuple(lines)).save(tmp_path / "c.csv")
    with pytest.raises(ValueError, match=message):
        load_corrections(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot be read \(No such file"),
        ("path,class\na,b\n", "no column verdict: expected path, class, verdict, new_class, sha256"),
        ("path,class,verdict,new_class,sha256\na,b\n", "line 2: 2 cells, expected 5"),
        ('path,class,verdict,new_class,sha256\n"a', "cannot be read"),
    ],
)
def test_load_corrections_refuses_other_files(text: str | None, message: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_corrections(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((KEEP._replace(sha256="e" * 64),), r"1 of the 1 photos in c\.csv are not in ROOT, such as t/a\.jpg"),
        ((RELABEL._replace(new_label="lily"),), r"unknown class lily for t/b\.jpg: expected one of r, t"),
        ((RELABEL, KEEP._replace(verdict="drop")), "leaves no photo of the class t"),
    ],
)
def test_check_refuses_corrections_of_another_folder(lines: tuple[Correction, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Corrections("c.csv", lines).check(IMAGES, "ROOT")


def test_save_writes_one_line_for_each_photo(tmp_path: Path):
    Corrections("x", (KEEP, DROP)).save(tmp_path / "c.csv")
    assert len(read_csv(tmp_path / "c.csv")) == 3
