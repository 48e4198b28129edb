"""Convert decoded images of every mode to upright RGB, in little more memory than the image and its result take."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

PEAK = "gray_peak"  # in `info` of an image that was grayscale of more than 8 bits: the result of `_gray_peak`

_DEPTHS = 8, 10, 12, 14, 16
_TILE_PIXELS = 1 << 18  # of an image that is converted in tiles: their float64 copies take 2 MiB each

GrayBits = int | Literal["auto"] | None  # see `Preprocessing.bit_depth`
Box = tuple[int, int, int, int]


def to_upright_rgb(image: Image.Image, bit_depth: GrayBits = "auto") -> Image.Image:
    """Return an image of any mode as RGB with 8 bits per channel, rotated as its EXIF tag says.

    Transparency becomes white. Grayscale of more than 8 bits is scaled to 8 bits.

    Args:
        image: The image.
        bit_depth: See `Preprocessing`.

    Raises:
        ValueError: Its values are beyond 16 bits.
    """
    return to_rgb(ImageOps.exif_transpose(image), bit_depth)


def to_rgb(image: Image.Image, bit_depth: GrayBits = "auto") -> Image.Image:
    """Return the same for an image that is upright. The result is a copy; beside it, only a tile takes memory."""
    if image.mode.startswith("I"):
        peak = _gray_peak(image) if bit_depth == "auto" or (bit_depth and image.mode == "I") else 0
        depth = bit_depth_of(peak) if bit_depth == "auto" else bit_depth or _depth_by_file(image)
        result = _convert_in_tiles(image, _integer_scaling(image.mode, 2.0**depth - 1))
        result.info |= {PEAK: peak}
        return result
    if image.mode == "F":
        return _convert_in_tiles(image, _float_scaling(image))
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


def bit_depth_of(peak: int) -> int:
    """Return the lowest usual number of bits in which a value from 0 to 65,535 has room."""
    return next(depth for depth in _DEPTHS if peak < 2**depth)


def _gray_peak(image: Image.Image) -> int:
    """Return the largest value of integer grayscale, but for a thousandth of the pixels, which a defect may have made.

    Raises:
        ValueError: More pixels have values beyond 16 bits.
    """
    counts = np.zeros(65_538, np.int64)  # of the values below 0, from 0 to 65,535, and above
    for box in _tiles(image):
        values = np.asarray(image.crop(box)).astype(np.int64).clip(-1, 65_536)
        counts += np.bincount(values.ravel() + 1, minlength=len(counts))
    few = min(max(1, counts.sum() // 1000), counts.sum() - 1)
    peak = 65_536 - int(np.searchsorted(counts[::-1].cumsum(), few, side="right"))
    if peak > 65_535 or counts[0] > few:
        raise ValueError("gray values beyond 0 to 65,535: save it with 16 bits")
    return peak


def _depth_by_file(image: Image.Image) -> int:
    """Return the number of bits of integer grayscale, as it was decided before it was measured over all photos."""
    return 16 if any(np.asarray(image.crop(box)).max() > 255 for box in _tiles(image)) else 8


def _integer_scaling(mode: str, high: float) -> Callable[[Image.Image], Image.Image]:
    if mode == "I":
        return lambda tile: Image.fromarray(_scale(_values(tile), 0.0, high))
    return lambda tile: Image.fromarray(_sixteen_bit_table(high)[np.asarray(tile)])


def _float_scaling(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what scales floats from the range of their values."""
    ranges = [(values.min(), values.max()) for values in map(_values, map(image.crop, _tiles(image)))]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return lambda tile: Image.fromarray(_scale(_values(tile), low, high))


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64))


def _scale(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return scaled.clip(0, 255).round().astype(np.uint8)


@cache
def _sixteen_bit_table(high: float) -> NDArray[np.uint8]:
    """Return the 8 bits of each value of 16 bits: looking them up is faster than computing them."""
    return _scale(np.arange(65_536, dtype=np.float64), 0.0, high)
