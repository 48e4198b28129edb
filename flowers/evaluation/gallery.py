"""The images that say most about a model: confident mistakes and uncertain predictions."""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from flowers.data.images import ImageBytes, ImageRoot, read_image
from flowers.data.remote import RemoteFileError
from flowers.evaluation.calibration import cross_fitted_probabilities
from flowers.evaluation.predictions import Predictions
from flowers.runtime.files import atomic_write_text

THUMBNAIL_SIDE = 160  # side of a thumbnail in pixels


class ScoredImage(NamedTuple):
    """An image with its true class, the predicted class and its calibrated probability, and the loss."""

    path: str
    true: str
    predicted: str
    probability: float
    loss: float


def score_images(predictions: Predictions) -> list[ScoredImage]:
    """Return one row per image, in the order of `predictions`; probabilities are cross-fitted, see `calibration`."""
    probabilities = cross_fitted_probabilities(predictions)
    losses = -probabilities.gather(1, predictions.labels[:, None])[:, 0].clamp(min=1e-300).log()
    classes = predictions.classes
    return [
        ScoredImage(path, classes[true], classes[predicted], row[predicted], loss)
        for path, true, predicted, row, loss in zip(
            predictions.paths,
            predictions.labels.tolist(),
            predictions.predicted.tolist(),
            probabilities.tolist(),
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ScoredImage._fields)
    writer.writerows([*row[:3], f"{row.probability:.6f}", f"{row.loss:.6f}"] for row in find_mistakes(rows))
    atomic_write_text(path, text.getvalue())


def thumbnail(path: str | Path | ImageBytes, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Return an image cropped to a square of `side` pixels; a gray square if it can no longer be read.

    Raises:
        RemoteFileError: Its server cannot be reached. The next thumbnail would wait for the connection as well.
    """
    try:
        return ImageOps.fit(read_image(path), (side, side))
    except RemoteFileError:
        raise
    except Exception:  # Pillow raises many types on damaged bytes, and the image was readable when it was checked
        return Image.new("RGB", (side, side), "gray")


def image_data_url(image: Image.Image) -> str:
    """Return an image as a data URL, for a page that needs no other file."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def image_grid(root: ImageRoot, rows: Sequence[ScoredImage], columns: int = 4) -> Tensor:
    """Return a grid of captioned thumbnails as one image: uint8 (3, H, W)."""
    line_height = 12
    height = THUMBNAIL_SIDE + 2 * line_height + 6
    sheet = Image.new("RGB", (columns * THUMBNAIL_SIDE, max(1, -(-len(rows) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        left, top = index % columns * THUMBNAIL_SIDE, index // columns * height
        sheet.paste(thumbnail(root / row.path), (left, top))
        draw.text((left + 3, top + THUMBNAIL_SIDE + 1), f"{row.predicted} {row.probability:.2f}"[:26], "black")
        draw.text((left + 3, top + THUMBNAIL_SIDE + 1 + line_height), f"true: {row.true}"[:26], "gray")
    return torch.as_tensor(v2.functional.pil_to_tensor(sheet))
