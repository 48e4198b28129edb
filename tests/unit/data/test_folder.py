from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers.data.folder import expand_image_paths, find_images
from flowers.data.images import read_image

RED_OVER_BLUE = np.zeros((40, 60, 3), np.uint8)
RED_OVER_BLUE[:20, :, 0] = RED_OVER_BLUE[20:, :, 2] = 255


def top_and_bottom(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pixels = np.asarray(image)
    return tuple(pixels[5, 5].tolist()), tuple(pixels[-5, -5].tolist())


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif"])
def test_each_format_reads_as_rgb(tmp_path: Path, name: str):
    Image.fromarray(RED_OVER_BLUE).save(tmp_path / name)
    top, bottom = top_and_bottom(read_image(tmp_path / name))
    assert np.abs(np.subtract(top, (255, 0, 0))).max() < 10
    assert np.abs(np.subtract(bottom, (0, 0, 255))).max() < 10


def test_an_exif_rotated_photo_is_read_upright(tmp_path: Path):
    turned = Image.fromarray(RED_OVER_BLUE).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees clockwise"
    turned.save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.size == (60, 40)
    assert top_and_bottom(upright) == ((255, 0, 0), (0, 0, 255))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path):
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (8, 1))).save(tmp_path / "a.png")
    row = np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].astype(int)
    assert np.abs(row - np.arange(256)).max() <= 1


def test_transparency_is_laid_on_white(tmp_path: Path):
    palette = Image.fromarray(RED_OVER_BLUE).quantize(4)
    palette.save(tmp_path / "a.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "a.png").getpixel((5, 5)) == (255, 255, 255)


def test_cmyk_and_greyscale_become_rgb(tmp_path: Path):
    Image.fromarray(RED_OVER_BLUE).convert("CMYK").save(tmp_path / "c.jpg")
    Image.fromarray(RED_OVER_BLUE).convert("L").save(tmp_path / "l.jpg")
    top, _ = top_and_bottom(read_image(tmp_path / "c.jpg"))
    assert np.abs(np.subtract(top, (255, 0, 0))).max() < 10
    assert read_image(tmp_path / "l.jpg").mode == "RGB"


def test_of_a_moving_image_the_first_frame_is_taken(tmp_path: Path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((10, 10)) == (255, 0, 0)


def test_a_format_that_could_run_a_program_is_not_opened(tmp_path: Path):
    Image.fromarray(RED_OVER_BLUE).save(tmp_path / "a.eps")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "a.eps")


def fill(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def test_find_walks_classes_and_passes_over_hidden_files_and_those_at_the_top(tmp_path: Path):
    root = fill(
        tmp_path, "README.md", ".git/x", "薔薇/a.jpg", "薔薇/more/b.jpg", "薔薇/.c.jpg", "tulip/Thumbs.db", "tulip/d"
    )
    assert [(item.path, item.label) for item in find_images(root)] == [
        ("tulip/d", "tulip"),
        ("薔薇/a.jpg", "薔薇"),
        ("薔薇/more/b.jpg", "薔薇"),
    ]


def test_folders_named_train_and_val_are_a_given_split(tmp_path: Path):
    root = fill(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")
    assert [(item.label, item.split) for item in find_images(root)] == [("a", "train"), ("b", "train"), ("a", "val")]


def test_a_class_that_is_only_in_val_is_an_error(tmp_path: Path):
    root = fill(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/c/3.jpg")
    with pytest.raises(ValueError, match=r"train lacks the class.* c "):
        find_images(root)


@pytest.mark.parametrize("folders", [("train", "test"), ("train", "val", "more")])
def test_a_split_that_is_not_whole_is_not_taken_for_classes(tmp_path: Path, folders: tuple[str, ...]):
    with pytest.raises(ValueError, match="wanted train, val and perhaps test"):
        find_images(fill(tmp_path, *(f"{name}/a/1.jpg" for name in folders)))


def test_a_missing_folder_and_a_single_class_are_errors(tmp_path: Path):
    with pytest.raises(ValueError, match="no folder of photos"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least two"):
        find_images(fill(tmp_path, "only/1.jpg"))


def test_photos_are_named_by_file_folder_glob_or_list(folder: Path, tmp_path: Path):
    files = sorted((folder / "lily").iterdir())
    assert expand_image_paths(str(files[0])) == files[:1]
    assert expand_image_paths(str(folder / "lily")) == files
    assert expand_image_paths(f"{folder}/**/*.png") == sorted(folder.rglob("*.png"))
    assert expand_image_paths([str(files[3]), str(folder / "lily"), str(files[0])]) == [
        files[3],
        *files[:3],
        *files[4:],
    ]
    (tmp_path / "[1].png").write_bytes(b"")
    assert expand_image_paths(str(tmp_path / "[1].png")) == [tmp_path / "[1].png"]
    for nothing in ("", [], [""]):
        with pytest.raises(ValueError, match="which photos"):
            expand_image_paths(nothing)
    with pytest.raises(ValueError, match=r"photos=.*\*\.jpg: no file there"):
        expand_image_paths([str(files[0]), f"{folder}/*.jpg"])
