import hashlib
from pathlib import Path

import pytest

from flowers.evaluation.review_page import LABEL_COLUMNS
from flowers.runtime.text import write_csv
from flowers.search.labeling import copy_labeled_photos


@pytest.fixture(name="photo")
def make_photo(tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"pixels")
    return str(path), hashlib.sha256(b"pixels").hexdigest()


def copy(tmp_path: Path, *rows: tuple[str, str, str]) -> dict[str, int]:
    write_csv(tmp_path / "labels.csv", [LABEL_COLUMNS, *rows])
    return dict(copy_labeled_photos(tmp_path / "labels.csv", tmp_path / "photos"))


def test_copy_labeled_photos_takes_the_name_of_the_photo_and_counts_a_repeated_line_once(tmp_path: Path, photo):
    path, sha256 = photo
    assert copy(tmp_path, (path, "rose", sha256), (path, "rose", sha256)) == {"rose": 1}
    assert [file.relative_to(tmp_path).as_posix() for file in (tmp_path / "photos").glob("*/*")] == [
        "photos/rose/photo.jpg"
    ]


@pytest.mark.parametrize("label", ["", "../rose", "/tmp", "..", ".rose", "a/b"])
def test_copy_labeled_photos_refuses_what_is_no_name_of_a_folder(label: str, tmp_path: Path, photo):
    with pytest.raises(ValueError, match=r"line 2: class .*: expected the name of a folder"):
        copy(tmp_path, (photo[0], label, photo[1]))
    assert not (tmp_path / "photos").exists()


def test_copy_labeled_photos_copies_nothing_where_one_line_is_wrong(tmp_path: Path, photo):
    path, sha256 = photo
    with pytest.raises(ValueError, match=r"is both rose and tulip: delete one of the lines"):
        copy(tmp_path, (path, "rose", sha256), (path, "tulip", sha256))
    with pytest.raises(ValueError, match=r"has changed since it was checked"):
        copy(tmp_path, (path, "rose", sha256), (path, "tulip", "0" * 64))
    with pytest.raises(ValueError, match=r"line 2: no SHA-256 for .*photo.jpg: expected 64 hexadecimal digits"):
        copy(tmp_path, (path, "rose", "12"))
    (tmp_path / "other.csv").write_text("path,label\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other.csv has no column class: expected path, class, sha256"):
        copy_labeled_photos(tmp_path / "other.csv", tmp_path / "photos")
    with pytest.raises(ValueError, match=r"none.csv cannot be read \(No such file or directory\)"):
        copy_labeled_photos(tmp_path / "none.csv", tmp_path / "photos")
    assert not (tmp_path / "photos").exists()
