"""Compare pairs of photos pixel by pixel: crop, size and color of a copy do not count.

Of two photos, one is registered to the other (scale and shift of each axis, by Gauss-Newton steps from coarse to fine),
and its colors are fitted to the brightness of the other. What is left is the difference: the share of the variance of
one photo that the other does not explain, 0 for a copy and nearly 1 for another scene.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64  # of thumbnails, in pixels

_COARSE = 32  # side of what is compared first; only pairs that may be crops are compared at SIDE
_COARSE_STEPS = ((16, 7), (32, 4))  # side and steps of the registration, from coarse to fine
_FINE_STEPS = ((SIDE, 2),)
_MAY_BE_CROP = 0.25
_SQUARES = 16  # along each axis, in which the peak of the difference is searched
_LARGEST_STEP, _LARGEST_SHIFT, _SCALES = 0.06, 0.2, (0.85, 1.18)  # shifts in half sides
_ALIGNED = 0.05  # a smaller difference is no matter of another crop, which leaves 0.1 and more
_FLAT = 2 / 255  # the standard deviation of an image in which nothing can be recognized
_BATCH = 512  # pairs at a time: some 30 MB
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Difference(NamedTuple):
    """How pairs of photos differ.

    Attributes:
        share: The share of the variance that is not explained, from 0 to 1, (B,).
        peak: The largest mean difference of one of 16 x 16 squares, in standard deviations, (B,).
    """

    share: Floats
    peak: Floats


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return an RGB image as uint8 (SIDE, SIDE, 3)."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def compare(thumbnails: NDArray[np.uint8], first: Ints, second: Ints, register: bool = True) -> Difference:
    """Return how pairs of images differ, whichever is first.

    Args:
        thumbnails: (N, SIDE, SIDE, 3).
        first: The position of one image of each pair, (B,).
        second: That of the other, (B,).
        register: Whether one may be a crop of the other.
    """
    if not len(first):
        return Difference(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32))
    starts = range(0, len(first), _BATCH)
    batches = [(first[start : start + _BATCH], second[start : start + _BATCH]) for start in starts]
    parts = [_compare(_pixels(thumbnails[one]), _pixels(thumbnails[other]), register) for one, other in batches]
    return Difference(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _pixels(thumbnails: NDArray[np.uint8]) -> Floats:
    return (thumbnails / np.float32(255)).astype(np.float32)


def _compare(first: Floats, second: Floats, register: bool) -> Difference:
    one, other = _reduced(first, _COARSE), _reduced(second, _COARSE)
    found = _both_ways(one, other, np.ones(one.shape[:3], dtype=np.float32))
    if not register or not (left := np.flatnonzero(found.share > _ALIGNED)).size:
        return found
    moves = np.tile(np.array([1, 0, 1, 0], dtype=np.float32), (len(left), 1))  # scale and shift of x, then of y
    moves = _register(one[left], other[left], moves, _COARSE_STEPS)
    _improve(found, left, _both_ways(one[left], *_move(other[left], moves)))
    is_crop = found.share[left] < _MAY_BE_CROP
    left, moves = left[is_crop], moves[is_crop]
    if left.size:
        moves = _register(first[left], second[left], moves, _FINE_STEPS)
        _improve(found, left, _both_ways(first[left], *_move(second[left], moves)))
    return found


def _improve(found: Difference, indices: Ints, other: Difference) -> None:
    """Put smaller differences of some pairs into those that were found."""
    is_better = other.share < found.share[indices]
    for values, new in zip(found, other, strict=True):
        values[indices] = np.where(is_better, new, values[indices])


def _both_ways(first: Floats, second: Floats, inside: Floats) -> Difference:
    """Return the larger difference: a photo with a spot more explains the one without it."""
    one, other = _unexplained(first, second, inside), _unexplained(second, first, inside)
    return Difference(np.maximum(one.share, other.share), np.maximum(one.peak, other.peak))


def _unexplained(target: Floats, source: Floats, inside: Floats) -> Difference:
    """Return what of the brightness of `target` no smooth function of the colors of `source` explains.

    Args:
        target: (B, S, S, 3), from 0 to 1.
        source: Likewise.
        inside: Which pixels both have, 0 or 1, (B, S, S).
    """
    count, pixels = len(target), inside.reshape(len(target), -1)
    brightness = (target @ _LUMA).reshape(count, -1) * pixels
    luma = source @ _LUMA
    features = np.stack([*np.moveaxis(source, 3, 0), luma**2, luma**3, np.ones_like(luma)], axis=1)
    features = features.reshape(count, 6, -1) * pixels[:, None]
    normal = (features @ features.transpose(0, 2, 1)).astype(np.float64) + 1e-4 * np.eye(6)
    weights = np.linalg.solve(normal, (features @ brightness[:, :, None]).astype(np.float64))
    rest = brightness - (weights.transpose(0, 2, 1).astype(np.float32) @ features)[:, 0]
    number = pixels.sum(1)
    variance = ((brightness - (brightness.sum(1) / number)[:, None]) ** 2 * pixels).sum(1) / number
    is_flat = variance < _FLAT**2
    variance = np.where(is_flat, 1, variance)
    share = np.where(is_flat, 1, np.minimum((rest**2).sum(1) / number / variance, 1))
    squares = _reduced(rest.reshape(inside.shape)[..., None], _SQUARES).reshape(count, -1)
    return Difference(share.astype(np.float32), np.abs(squares).max(1) / np.sqrt(variance).astype(np.float32))


def _register(first: Floats, second: Floats, moves: Floats, levels: Sequence[tuple[int, int]]) -> Floats:
    """Return the scales and shifts (B, 4) that move `second` onto `first`, from those that are known so far."""
    for side, steps in levels:
        target, source = (_reduced(images, side) @ _LUMA for images in (first, second))
        for _ in range(steps):
            moves = _step(target, source, moves)
    return moves


def _move(images: Floats, moves: Floats) -> tuple[Floats, Floats]:
    """Return images (B, S, S, 3) after scales and shifts (B, 4), and which pixels they then have, (B, S, S)."""
    side = images.shape[1]
    columns, x_inside = _interpolation(moves[:, 0], moves[:, 1], side)
    rows, y_inside = _interpolation(moves[:, 2], moves[:, 3], side)
    by_rows = (rows @ images.reshape(len(images), side, -1)).reshape(images.shape)
    moved = (columns[:, None] @ by_rows).astype(np.float32)
    return moved, (y_inside[:, :, None] & x_inside[:, None, :]).astype(np.float32)


def _step(target: Floats, source: Floats, moves: Floats) -> Floats:
    """Return scales and shifts (B, 4) after a Gauss-Newton step. Contrast and brightness are free."""
    side = target.shape[1]
    columns, x_inside = _interpolation(moves[:, 0], moves[:, 1], side)
    rows, y_inside = _interpolation(moves[:, 2], moves[:, 3], side)
    moved = rows @ source @ columns.transpose(0, 2, 1)
    inside = (y_inside[:, :, None] & x_inside[:, None, :]).reshape(len(moved), 1, -1)
    slope_y, slope_x = np.gradient(moved, 2 / side, axis=(1, 2))
    grid = _centers(side)
    slopes = [slope_x * grid, slope_x, slope_y * grid[:, None], slope_y, moved, np.ones_like(moved)]
    jacobian = np.stack(slopes, axis=1).reshape(len(moved), 6, -1) * inside
    normal = (jacobian @ jacobian.transpose(0, 2, 1)).astype(np.float64)
    normal += (1e-5 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(6)
    found = np.linalg.solve(normal, (jacobian @ target.reshape(len(moved), -1, 1)).astype(np.float64))[:, :, 0]
    contrast = np.where(np.abs(found[:, 4:5]) < 0.1, 0.1, found[:, 4:5])
    change = found[:, :4] / contrast * moves[:, [0, 0, 2, 2]]
    moves = moves + np.clip(change, -_LARGEST_STEP, _LARGEST_STEP).astype(np.float32)
    moves[:, [0, 2]] = np.clip(moves[:, [0, 2]], *_SCALES)
    moves[:, [1, 3]] = np.clip(moves[:, [1, 3]], -_LARGEST_SHIFT, _LARGEST_SHIFT)
    return moves


def _centers(side: int) -> Floats:
    return ((np.arange(side) * 2 + 1) / side - 1).astype(np.float32)  # from -1 to 1


def _interpolation(scales: Floats, shifts: Floats, side: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the matrix (B, side, side) that moves pixels along an axis, and which of them are inside, (B, side)."""
    places = ((scales[:, None] * _centers(side) + shifts[:, None] + 1) * side - 1) / 2
    inside = (places >= -0.5) & (places <= side - 0.5)
    nearest = np.clip(places, 0, side - 1)[:, :, None]
    return np.maximum(0, 1 - np.abs(nearest - np.arange(side))).astype(np.float32), inside


def _reduced(images: Floats, side: int) -> Floats:
    """Return images (B, S, S, C) with `side` pixels along each axis."""
    step = images.shape[1] // side
    parts = [images[:, row::step, column::step] for row in range(step) for column in range(step)]
    return sum(parts[1:], parts[0]) / np.float32(step**2)
