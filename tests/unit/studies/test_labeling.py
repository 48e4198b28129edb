import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from flowers.runtime.text import write_csv
from flowers.studies.labeling import copy_labeled_photos
from flowers.studies.review_page import LABEL_COLUMNS


@pytest.fixture(name="photo")
def make_photo(tmp_path: Path) -> tuple[str, str]:
    return make_photo_file(tmp_path / "photo.jpg")


def make_photo_file(path: Path, color: str = "red") -> tuple[str, str]:
    Image.new("RGB", (8, 8), color).save(path, "PNG")
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


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


def test_copy_labeled_photos_finds_another_name_where_both_are_taken(tmp_path: Path, photo):
    path, sha256 = photo
    folder = tmp_path / "photos" / "rose"
    folder.mkdir(parents=True)
    taken = [folder / "photo.jpg", folder / f"photo-{sha256[:12]}.jpg"]
    for file in taken:
        file.write_text("other", encoding="utf-8")
    for _ in range(2):  # the second time, the copy is there already
        assert copy(tmp_path, (path, "rose", sha256)) == {"rose": 1}
        (copied,) = set(folder.iterdir()) - {*taken}
        assert copied.read_bytes() == Path(path).read_bytes()
    assert {file.read_text(encoding="utf-8") for file in taken} == {"other"}


def test_copy_labeled_photos_does_not_write_through_a_link(tmp_path: Path, photo):
    folder = tmp_path / "photos" / "rose"
    folder.mkdir(parents=True)
    (folder / "photo.jpg").symlink_to(tmp_path / "elsewhere")
    assert copy(tmp_path, (photo[0], "rose", photo[1])) == {"rose": 1}
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["é" * 125 + ".jpeg", "a." + "b" * 253, "x" * 251 + ".png"])
def test_copy_labeled_photos_copies_a_photo_with_the_longest_name(name: str, tmp_path: Path):
    path, sha256 = make_photo_file(tmp_path / name)
    assert copy(tmp_path, (path, "rose", sha256)) == {"rose": 1}
    (copied,) = (tmp_path / "photos" / "rose").iterdir()
    assert copied.read_bytes() == Path(path).read_bytes()


def write_text_photo(tmp_path: Path) -> str:
    (tmp_path / "text.jpg").write_text("no pixels", encoding="utf-8")
    return "rose"


def write_file_for_folder(tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "tulip").touch()
    return "tulip"


def write_loop_for_folder(tmp_path: Path) -> str:
    (tmp_path / "photos").symlink_to(tmp_path / "photos")
    return "tulip"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (write_text_photo, r"text\.jpg is no photo \(not a JPEG, .*\): delete its line"),
        (write_file_for_folder, r"photos/tulip is no folder: expected a folder for the photos"),
        (write_loop_for_folder, r"photos is no folder: expected a folder for the photos"),
        (lambda _: "a" * 256, r"a has a name of more than 255 bytes"),
    ],
)
def test_copy_labeled_photos_checks_all_before_the_first_copy(tmp_path: Path, photo, prepare, message: str):
    label = prepare(tmp_path)
    other = tmp_path / "text.jpg" if label == "rose" else make_photo_file(tmp_path / "b.jpg", "blue")[0]
    digest = hashlib.sha256(Path(other).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=message):
        copy(tmp_path, (photo[0], "aster", photo[1]), (str(other), label, digest))
    assert not (tmp_path / "photos" / "aster").exists()


def test_copy_labeled_photos_says_that_a_folder_is_read_only(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=r"is not writable: expected a folder for the photos: give another output="):
        copy(tmp_path, (photo[0], "rose", photo[1]))


def test_copy_labeled_photos_counts_what_is_there(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    @contextmanager
    def lose(path: Path, *_: object) -> Iterator[Path]:
        yield path.with_name("lost")

    monkeypatch.setattr("flowers.studies.labeling.atomic_write", lose)
    (tmp_path / "photos" / "rose").mkdir(parents=True)
    assert copy(tmp_path, (photo[0], "rose", photo[1])) == {}
