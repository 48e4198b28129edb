from pathlib import Path

import pytest

from flowers.data.folder import ImageFolderSource, expand_image_paths, find_images


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
    with pytest.raises(ValueError, match=r"train lacks the class.* c: expected all classes"):
        find_images(root)


@pytest.mark.parametrize("folders", [("train", "test"), ("train", "val", "more")])
def test_find_images_does_not_take_incomplete_splits_for_classes(tmp_path: Path, folders: tuple[str, ...]):
    with pytest.raises(ValueError, match="expected train, val and optionally test"):
        find_images(create_files(tmp_path, *(f"{name}/a/1.jpg" for name in folders)))


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
        _ = ImageFolderSource(folder).records


def test_source_skips_and_names_unreadable_files_on_request(folder: Path, caplog: pytest.LogCaptureFixture):
    corrupt(folder)
    assert len(ImageFolderSource(folder, on_corrupt="skip").records) == 20
    assert "lily/empty.jpg: empty" in caplog.text


def test_source_refuses_a_class_without_a_readable_image(folder: Path):
    (folder / "rose").mkdir()
    (folder / "rose" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no usable image of the class.* rose"):
        _ = ImageFolderSource(folder, on_corrupt="skip").records


def test_source_ignores_and_names_an_image_in_two_classes(folder: Path, caplog: pytest.LogCaptureFixture):
    content = (folder / "lily" / "01.png").read_bytes()
    (folder / "orchid" / "twin.png").write_bytes(content)
    paths = {record.path for record in ImageFolderSource(folder).records}
    assert len(paths) == 19
    assert not paths & {"lily/01.png", "orchid/twin.png"}
    assert "lily/01.png, orchid/twin.png" in caplog.text


def test_source_uses_split_folders_and_warns_of_leaks(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    split = tmp_path / "split"
    for path in folder.glob("*/*.png"):
        name = "val" if path.stem in ("00", "01") else "train"
        (split / name / path.parent.name).mkdir(parents=True, exist_ok=True)
        (split / name / path.parent.name / path.name).write_bytes(path.read_bytes())
    names = [record.split for record in ImageFolderSource(split).records]
    assert (names.count("train"), names.count("val")) == (18, 2)
    (split / "val" / "lily" / "again.png").write_bytes((folder / "lily" / "03.png").read_bytes())
    assert [record.split for record in ImageFolderSource(split).records].count("val") == 3
    assert "1 group(s) of duplicates are in several splits" in caplog.text


def test_source_checks_its_settings_before_it_calls_the_download(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data\.val_fraction=1\.5: expected a number from 0 to below 1"):
        ImageFolderSource(tmp_path / "missing", val_fraction=1.5)
