"""Convert decoded images of every mode to upright RGB, in little more memory than the image and its result take."""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_TILE_PIXELS = 1 << 18  # of an image that is converted in tiles: their float64 copies take 2 MiB each

Box = tuple[int, int, int, int]


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB with 8 bits per channel, rotated as its EXIF tag says.

    Transparency becomes white. Grayscale of more than 8 bits is scaled to 8 bits.
    """
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the same for an image that is upright. The result is a copy; beside it, only a tile takes memory."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _convert_in_tiles(image, _gray_scaling(image))
    if image.has_transparency_data:
        return _convert_in_tiles(image, _on_white)
    return image.convert("RGB")


def _convert_in_tiles(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    result = Image.new("RGB", image.size)
    for box in _tiles(image):
        result.paste(convert(image.crop(box)).convert("RGB"), box)
    return result


def _tiles(image: Image.Image) -> Iterator[Box]:
    width = min(image.width, _TILE_PIXELS)
    height = max(1, _TILE_PIXELS // max(width, 1))
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            yield left, top, min(left + width, image.width), min(top + height, image.height)


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _gray_scaling(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what scales grayscale from the range of its type, or for floats from the range of its values."""
    if image.mode == "F":
        ranges = [(values.min(), values.max()) for values in map(_values, map(image.crop, _tiles(image)))]
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        return lambda tile: Image.fromarray(_scale(_values(tile), low, high))
    is_deep = any(np.asarray(image.crop(box)).max() > 255 for box in _tiles(image))
    high = 65_535.0 if is_deep else 255.0
    if image.mode == "I":
        return lambda tile: Image.fromarray(_scale(_values(tile), 0.0, high))
    return lambda tile: Image.fromarray(_sixteen_bit_table(high)[np.asarray(tile)])


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64))


def _scale(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return scaled.clip(0, 255).round().astype(np.uint8)


@cache
def _sixteen_bit_table(high: float) -> NDArray[np.uint8]:
    """Return the 8 bits of each value of 16 bits: looking them up is faster than computing them."""
    return _scale(np.arange(65_536, dtype=np.float64), 0.0, high)
