"""The images that say most about a model: confident mistakes and uncertain predictions."""

import base64
import io
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from flowers.data.images import ImageBytes, ImageRoot, pixel_limit, read_image
from flowers.data.remote import RemoteFileError
from flowers.evaluation.calibration import cross_fitted_probabilities
from flowers.runs.predictions import Predictions
from flowers.runtime.text import one_line, write_csv

THUMBNAIL_SIDE = 160  # side of a thumbnail in pixels
_GRID_SIDE, _CAPTION_SIZE = 240, 24  # side of a thumbnail in a grid, and size of its captions, in pixels


class ScoredImage(NamedTuple):
    """An image with its true class, the predicted class and its calibrated probability, and the loss."""

    path: str
    true: str
    predicted: str
    probability: float
    loss: float


def score_images(predictions: Predictions) -> list[ScoredImage]:
    """Return one row per image, in the order of `predictions`; probabilities are cross-fitted, see `calibration`."""
    calibrated, predicted = cross_fitted_probabilities(predictions), predictions.predicted
    losses = -calibrated.gather(1, predictions.labels[:, None])[:, 0].clamp(min=1e-300).log()
    classes = predictions.classes
    return [
        ScoredImage(path, classes[true], classes[answer], probability, loss)
        for path, true, answer, probability, loss in zip(
            predictions.paths,
            predictions.labels.tolist(),
            predicted.tolist(),
            calibrated.gather(1, predicted[:, None])[:, 0].tolist(),
            losses.tolist(),
            strict=True,
        )
    ]


def find_mistakes(rows: Sequence[ScoredImage]) -> list[ScoredImage]:
    """Return the wrong predictions, most confident first."""
    return sorted((row for row in rows if row.true != row.predicted), key=lambda row: (-row.probability, row.path))


def sort_by_uncertainty(rows: Sequence[ScoredImage]) -> list[ScoredImage]:
    """Return all rows, least confident first."""
    return sorted(rows, key=lambda row: (row.probability, row.path))


def save_mistakes(rows: Sequence[ScoredImage], path: Path) -> None:
    """Write the mistakes to a CSV file, one line per image, most confident first."""
    mistakes = [[*row[:3], f"{row.probability:.6f}", f"{row.loss:.6f}"] for row in find_mistakes(rows)]
    write_csv(path, [ScoredImage._fields, *mistakes])


def thumbnail(root: ImageRoot, name: str, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Return an image at `root` cropped to a square of `side` pixels; a gray square if it can no longer be read.

    Raises:
        RemoteFileError: Its server cannot be reached. The next thumbnail would wait for the connection as well.
    """
    limit = pixel_limit(root)
    try:
        path = root / name
        if isinstance(path, ImageBytes):
            return ImageOps.fit(read_image(path, limit), (side, side))
        status = path.stat()
        return _file_thumbnail(path, side, limit, status.st_size, status.st_mtime_ns)
    except RemoteFileError:
        raise
    except Exception:  # Pillow raises many types on damaged bytes, and the image was readable when it was checked
        return Image.new("RGB", (side, side), "gray")


@lru_cache(maxsize=320)  # of a run, which the next job of a multirun shows again; at most 55 MB
def _file_thumbnail(path: Path, side: int, limit: int, size: int, mtime_ns: int) -> Image.Image:
    """Return the thumbnail of a file with this size and modification time. The caller must not modify it."""
    return ImageOps.fit(read_image(path, limit), (side, side))


def image_data_url(image: Image.Image) -> str:
    """Return an image as a data URL, for a page that needs no other file."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def image_grid(root: ImageRoot, rows: Sequence[ScoredImage], columns: int = 4) -> Tensor:
    """Return a grid of captioned thumbnails as one image: uint8 (3, H, W)."""
    font = caption_font(_CAPTION_SIZE)  # TensorBoard shows such a grid at about half of its size
    line_height = _CAPTION_SIZE * 5 // 4
    height = _GRID_SIDE + 2 * line_height + 6
    sheet = Image.new("RGB", (columns * _GRID_SIDE, max(1, -(-len(rows) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        left, top = index % columns * _GRID_SIDE + 3, index // columns * height
        sheet.paste(thumbnail(root, row.path, _GRID_SIDE), (left - 3, top))
        probability = f" {row.probability:.2f}"
        captions = (_fit(row.predicted, font, probability) + probability, "true: " + _fit(row.true, font, "true: "))
        for line, (caption, color) in enumerate(zip(captions, ("black", "dimgray"), strict=True)):
            draw.text((left, top + _GRID_SIDE + 1 + line * line_height), caption, color, font)
    return torch.as_tensor(v2.functional.pil_to_tensor(sheet))


@cache
def caption_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of matplotlib in a size in pixels: that of Pillow has few letters beyond English ones."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _fit(label: str, font: ImageFont.FreeTypeFont, beside: str) -> str:
    """Return a label, cut so that it fits under its thumbnail together with another text."""
    label, room = one_line(label), _GRID_SIDE - 6 - font.getlength(beside)
    if font.getlength(label) <= room:
        return label
    end = next(end for end in range(len(label), -1, -1) if font.getlength(label[:end] + "…") <= room)
    return label[:end] + "…"
