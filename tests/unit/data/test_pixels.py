import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from flowers.data.images import read_image
from flowers.data.pixels import to_upright_rgb

SIZE = (23, 17)


def reference_rgb(image: Image.Image) -> Image.Image:
    """Convert an image in the plain way, with several copies of it: the pixels of READ_VERSION 1."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode == "F":
            low, high = values.min(), values.max()
        else:
            low, high = 0.0, 65_535.0 if values.max() > 255 else 255.0
        scaled = (values - low) / max(high - low, 1e-12) * 255
        return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def noise(channels: int = 3, dtype: type = np.uint8, high: int = 256) -> np.ndarray:
    shape = SIZE[::-1] if channels == 1 else (*SIZE[::-1], channels)
    return np.random.default_rng(channels).integers(0, high, shape).astype(dtype)


def images() -> dict[str, Image.Image]:
    """One image of each mode that the formats of `read_image` have, and of each kind of transparency."""
    rgb, gray = Image.fromarray(noise()), Image.fromarray(noise(1))
    made = {mode: rgb.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV")}
    made["LAB"] = Image.frombytes("LAB", SIZE, noise().tobytes())
    made["RGBA"] = Image.fromarray(noise(4))
    made["RGBX"] = Image.frombytes("RGBX", SIZE, noise(4).tobytes())
    made["RGBa"] = made["RGBA"].convert("RGBa")
    made["LA"] = Image.frombytes("LA", SIZE, noise(2).tobytes())
    made["PA"] = made["P"].copy()
    made["PA"].putalpha(gray)
    made["I;16"] = Image.fromarray(noise(1, np.uint16, 65_536))
    made["I;16B"] = Image.frombytes("I;16B", SIZE, noise(1, np.uint16, 65_536).tobytes())
    made["I;16 dark"] = Image.fromarray(noise(1, np.uint16, 256))
    made["I"] = Image.fromarray(noise(1, np.int32, 100_000) - 10_000)
    made["I dark"] = Image.fromarray(noise(1, np.int32, 256))
    made["F"] = Image.fromarray((noise(1, np.float32, 10_000) / 7 - 300).astype(np.float32))
    flat = np.full(SIZE[::-1], 0.25, np.float32)
    made["F flat"] = Image.fromarray(flat)
    holes = flat.copy()
    holes[3, 4], holes[5, 6] = np.nan, -2
    made["F holes"] = Image.fromarray(holes)
    for name, mode, transparency in (("1 key", "1", 255), ("L key", "L", 7), ("P key", "P", 3), ("RGB key", "RGB", 0)):
        made[name] = made[mode].copy()
        made[name].info["transparency"] = made["RGB"].getpixel((2, 2)) if mode == "RGB" else transparency
    made["P table"] = made["P"].copy()
    made["P table"].info["transparency"] = bytes(range(256))
    return made


@pytest.mark.parametrize("tile_pixels", [1 << 20, 40, 5])
@pytest.mark.parametrize("name", images())
def test_to_upright_rgb_gives_the_same_pixels_in_tiles_of_any_size(
    name: str, tile_pixels: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flowers.data.pixels._TILE_PIXELS", tile_pixels)
    image = images()[name]
    before = image.tobytes()
    result = to_upright_rgb(image, bit_depth=None)
    assert result.mode == "RGB"
    assert result.tobytes() == reference_rgb(image).tobytes()
    assert image.tobytes() == before


SAVED = [
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "L key", "P key", "P table", "RGB key")),
    *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I", "F")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("GIF", mode) for mode in ("1", "L", "P", "P key")),
    *(("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")),
]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("file_format", "name"), SAVED)
def test_read_image_gives_the_same_pixels_in_every_format_and_orientation(
    tmp_path: Path, file_format: str, name: str, orientation: int
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    has_exif = file_format in ("PNG", "TIFF", "JPEG", "WEBP")
    images()[name].save(content, file_format, **({"exif": exif} if has_exif else {}))
    path = tmp_path / "a"
    path.write_bytes(content.getvalue())
    expected = reference_rgb(Image.open(content))
    for found in (read_image(path, bit_depth=None), read_image(content, bit_depth=None)):
        assert (found.mode, found.size) == ("RGB", expected.size)
        assert found.tobytes() == expected.tobytes()


def gray(values: np.ndarray, dtype: type = np.uint16) -> Image.Image:
    return Image.fromarray(values.astype(dtype))


@given(st.sampled_from([8, 10, 12, 14, 16]), st.sampled_from([np.uint16, np.int32]), st.integers(0, 9))
def test_to_upright_rgb_keeps_the_levels_of_every_bit_depth(depth: int, dtype: type, seed: int):
    values = np.random.default_rng(seed).integers(0, 2**depth, (40, 50))
    values[:2] = 2**depth - 1
    expected = (values / (2**depth - 1) * 255).round()
    for bit_depth in ("auto", depth):
        found = np.asarray(to_upright_rgb(gray(values, dtype), bit_depth))[..., 0]
        assert (found == expected).all()


@pytest.mark.parametrize("hot", [256, 4095, 65_535])
def test_to_upright_rgb_does_not_let_one_hot_pixel_decide(hot: int):
    values = np.arange(256).reshape(16, 16)
    values[15, 15] = hot
    found = np.asarray(to_upright_rgb(gray(values)))[..., 0]
    assert found.max() == 255
    assert (found.ravel()[:255] == np.arange(255)).all()


def test_to_upright_rgb_gives_a_value_the_same_brightness_in_all_images_of_a_bit_depth():
    dark, bright = np.full((9, 9), 300), np.full((9, 9), 300)
    bright[0] = 4000
    levels = {np.asarray(to_upright_rgb(gray(values), 12))[5, 5, 0] for values in (dark, bright)}
    assert levels == {round(300 / 4095 * 255)}


@pytest.mark.parametrize("values", [-1000, 70_000])
def test_to_upright_rgb_refuses_values_beyond_16_bits(values: int):
    image = gray(np.full((9, 9), values), np.int32)
    for bit_depth in ("auto", 12):
        with pytest.raises(ValueError, match="gray values beyond 0 to 65,535: save it with 16 bits"):
            to_upright_rgb(image, bit_depth)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1)])
def test_to_upright_rgb_takes_tiny_images_of_16_bits(shape: tuple[int, int]):
    assert to_upright_rgb(gray(np.full(shape, 255))).getpixel((0, 0)) == (255, 255, 255)
    assert to_upright_rgb(gray(np.zeros(shape))).getpixel((0, 0)) == (0, 0, 0)
