import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import read_image
from flowers.data.sources.folder import FolderSource
from flowers.data.sources.layout import find_images
from flowers.data.sources.listing import expand_image_paths
from flowers.data.splitter import Splitter
from flowers.settings.schema.values import OnCorrupt


def create_files(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def corrupt(folder: Path) -> None:
    (folder / "lily" / "empty.jpg").write_bytes(b"")
    (folder / "orchid" / "text.jpg").write_text("not an image", encoding="utf-8")


def test_find_images_walks_class_folders_and_ignores_hidden_and_top_level_files(tmp_path: Path):
    root = create_files(
        tmp_path, "README.md", ".git/x", "薔薇/a.jpg", "薔薇/more/b.jpg", "薔薇/.c.jpg", "tulip/Thumbs.db", "tulip/d"
    )
    assert [(file.path, file.label) for file in find_images(root)] == [
        ("tulip/d", "tulip"),
        ("薔薇/a.jpg", "薔薇"),
        ("薔薇/more/b.jpg", "薔薇"),
    ]


def test_find_images_reads_train_and_val_folders_as_splits(tmp_path: Path):
    root = create_files(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")
    assert [(file.label, file.split) for file in find_images(root)] == [("a", "train"), ("b", "train"), ("a", "val")]


def test_find_images_refuses_a_class_that_is_only_in_val(tmp_path: Path):
    root = create_files(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/c/3.jpg")
    with pytest.raises(ValueError, match=r"train folder of .* lacks the class.* c: expected all classes"):
        find_images(root)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "valid", "test"), ("training", "validation", "testing"), ("Train", "Val", "TEST"), ("train", "dev", "")],
)
def test_find_images_takes_the_usual_names_of_splits_in_any_case(tmp_path: Path, train: str, val: str, test: str):
    files = [f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{val}/a/3.jpg", *([f"{test}/b/4.jpg"] if test else [])]
    found = {file.path: (file.label, file.split) for file in find_images(create_files(tmp_path, *files))}
    expected = [("a", "train"), ("b", "train"), ("a", "val"), ("b", "test")]
    assert found == dict(zip(files, expected, strict=False))


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test"),
        ("train", "val", "more"),
        ("training", "Valid", "rose"),
        ("train", "val", "validation"),
        ("train", "training"),
        ("val", "test"),
    ],
)
def test_find_images_does_not_take_unclear_splits_for_classes(tmp_path: Path, folders: tuple[str, ...]):
    with pytest.raises(ValueError, match="expected train, val and optionally test"):
        find_images(create_files(tmp_path, *(f"{name}/a/1.jpg" for name in folders)))


@pytest.mark.parametrize("folders", [("train", "car", "bus"), ("valid", "invalid"), ("dev", "prod")])
def test_find_images_takes_a_class_that_has_the_name_of_a_split(tmp_path: Path, folders: tuple[str, ...]):
    found = find_images(create_files(tmp_path, *(f"{name}/1.jpg" for name in folders)))
    assert {(file.label, file.split) for file in found} == {(name, None) for name in folders}


@pytest.mark.parametrize("unreadable", ["lily", "lily/more", ""])
def test_find_images_names_a_folder_that_cannot_be_read(
    tmp_path: Path, unreadable: str, monkeypatch: pytest.MonkeyPatch
):
    root = create_files(tmp_path, "lily/1.jpg", "lily/more/2.jpg", "rose/3.jpg")
    scandir = os.scandir

    def fail(path: str | Path) -> Any:  # permissions do not stop the root user, who may run the tests
        if Path(path) == root / unreadable:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", fail)
    with pytest.raises(ValueError, match=f"the folder {root / unreadable} cannot be read .Permission denied"):
        find_images(root)
    if unreadable:
        with pytest.raises(ValueError, match=f"the folder {root / unreadable} cannot be read"):
            expand_image_paths(str(root))


def test_find_images_names_empty_class_folders_and_links_to_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = create_files(tmp_path / "photos", "lily/1.jpg", "rose/2.jpg", "tu\x1blip/.hidden")
    (tmp_path / "photos" / "lily" / "linked").symlink_to(tmp_path)
    assert {file.label for file in find_images(root)} == {"lily", "rose"}
    assert "ignoring folders without a photo" in caplog.text
    assert r"tu\x1blip" in caplog.text
    assert "lily/linked" in caplog.text


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "folder"])
def test_source_lists_what_is_not_a_regular_file(folder: Path, kind: str):
    path = folder / "lily" / "special.jpg"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to(folder, target_is_directory=True)
        assert path not in expand_image_paths(str(folder))
        return
    with pytest.raises(ValueError, match=r"1 of 21 files (.|\n)*lily/special.jpg: not a regular file"):
        _ = Splitter().split(FolderSource(folder))
    assert path in expand_image_paths(str(folder))
    with pytest.raises(OSError, match="not a regular file"):
        read_image(path)


def test_source_escapes_the_names_of_strangers(folder: Path):
    (folder / "lily" / "a\x1b[31m\n.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\n  lily/a\\x1b\[31m\\n\.jpg: empty\n"):
        _ = Splitter().split(FolderSource(folder))


def test_find_images_refuses_a_missing_folder_and_a_single_class(tmp_path: Path):
    with pytest.raises(ValueError, match="no folder of images"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least two"):
        find_images(create_files(tmp_path, "only/1.jpg"))


def test_expand_image_paths_takes_a_file_a_folder_a_glob_or_a_list(folder: Path, tmp_path: Path):
    files = sorted((folder / "lily").iterdir())
    assert expand_image_paths(str(files[0])) == files[:1]
    assert expand_image_paths(str(folder / "lily")) == files
    assert expand_image_paths(f"{folder}/**/*.png") == sorted(folder.rglob("*.png"))
    several = [str(files[3]), str(folder / "lily"), str(files[0])]
    assert expand_image_paths(several) == [files[3], *files[:3], *files[4:]]
    (tmp_path / "[1].png").write_bytes(b"")
    assert expand_image_paths(str(tmp_path / "[1].png")) == [tmp_path / "[1].png"]
    for nothing in ("", [], [""]):
        with pytest.raises(ValueError, match="no images given"):
            expand_image_paths(nothing)
    with pytest.raises(ValueError, match=r"photos=.*\*\.jpg: no such file"):
        expand_image_paths([str(files[0]), f"{folder}/*.jpg"])


def test_source_names_all_unreadable_files_at_once(folder: Path):
    corrupt(folder)
    with pytest.raises(ValueError, match=r"2 of 22 files (.|\n)*lily/empty.jpg: empty(.|\n)*orchid/text.jpg: not a"):
        _ = Splitter().split(FolderSource(folder))


def test_source_skips_and_names_unreadable_files_on_request(folder: Path, caplog: pytest.LogCaptureFixture):
    corrupt(folder)
    assert len(Splitter().split(FolderSource(folder, on_corrupt="skip"))) == 20
    assert "lily/empty.jpg: empty" in caplog.text


def test_source_refuses_a_class_without_a_readable_image(folder: Path):
    (folder / "rose").mkdir()
    (folder / "rose" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no usable image of the class.* rose"):
        _ = Splitter().split(FolderSource(folder, on_corrupt="skip"))


def test_source_ignores_and_names_an_image_in_two_classes(folder: Path, caplog: pytest.LogCaptureFixture):
    content = (folder / "lily" / "01.png").read_bytes()
    (folder / "orchid" / "twin.png").write_bytes(content)
    paths = {record.path for record in Splitter().split(FolderSource(folder))}
    assert len(paths) == 19
    assert not paths & {"lily/01.png", "orchid/twin.png"}
    assert "lily/01.png, orchid/twin.png" in caplog.text


def test_source_uses_split_folders_and_warns_of_leaks(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    split = tmp_path / "split"
    for path in folder.glob("*/*.png"):
        name = "val" if path.stem in ("00", "01") else "train"
        (split / name / path.parent.name).mkdir(parents=True, exist_ok=True)
        (split / name / path.parent.name / path.name).write_bytes(path.read_bytes())
    names = [record.split for record in Splitter().split(FolderSource(split))]
    assert (names.count("train"), names.count("val")) == (18, 2)
    (split / "val" / "lily" / "again.png").write_bytes((folder / "lily" / "03.png").read_bytes())
    assert [record.split for record in Splitter().split(FolderSource(split))].count("val") == 3
    assert "1 group(s) of duplicates are in several splits" in caplog.text


def test_source_checks_its_settings_before_it_calls_the_download(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data\.val_fraction=1\.5: expected a number from 0 to below 1"):
        ImageDataModule.from_settings(tmp_path / "missing", val_fraction=1.5)


@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_source_without_a_readable_file_names_fifty_of_them(on_corrupt: OnCorrupt, tmp_path: Path):
    create_files(tmp_path, *(f"{label}/{index}.ppm" for label in ("a", "b") for index in range(30)))
    with pytest.raises(ValueError, match=r"60 of 60 files in .* cannot be read:") as error:
        _ = FolderSource(tmp_path, on_corrupt=on_corrupt).images
    lines = str(error.value).splitlines()
    assert len(lines) == 53
    assert lines[-2:] == ["  … and 10 more", "expected photos in these formats: convert them, or give another folder"]
