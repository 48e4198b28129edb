"""The photos that say most about a model: its surest mistakes, where wrong labels show too, and the least sure."""

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

from flowers import atomic, calibration, photos, remote
from flowers.predictions import Predictions

SIDE = 160  # pixels of a thumbnail


class Said(NamedTuple):
    """A photo, its true class, the one predicted, that one's calibrated probability, and the true one's loss."""

    path: str
    true: str
    predicted: str
    probability: float
    loss: float


def said(predictions: Predictions) -> list[Said]:
    """A row a photo, in their order."""
    probabilities = calibration.crossfitted(predictions)
    losses = -probabilities.gather(1, predictions.labels[:, None])[:, 0].clamp(min=1e-300).log()
    classes = predictions.classes
    return [
        Said(path, classes[true], classes[answer], row[answer], loss)
        for path, true, answer, row, loss in zip(
            predictions.paths,
            predictions.labels.tolist(),
            predictions.predicted.tolist(),
            probabilities.tolist(),
            losses.tolist(),
            strict=True,
        )
    ]


def mistakes(rows: Sequence[Said]) -> list[Said]:
    """Those told wrong, the surest first."""
    return sorted((row for row in rows if row.true != row.predicted), key=lambda row: (-row.probability, row.path))


def least_sure(rows: Sequence[Said]) -> list[Said]:
    """All, the least sure first."""
    return sorted(rows, key=lambda row: (row.probability, row.path))


def save_mistakes(rows: Sequence[Said], path: Path) -> None:
    """Writes the mistakes as CSV, a line a photo, the surest first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Said._fields)
    writer.writerows([*row[:3], f"{row.probability:.6f}", f"{row.loss:.6f}"] for row in mistakes(rows))
    atomic.write_text(path, text.getvalue())


def thumbnail(path: str | Path | photos.Packed, side: int = SIDE) -> Image.Image:
    """The photo cut to a square of `side` pixels; a grey one where it can no longer be read.

    Raises LostError where it is far away and cannot be had: the next one's connection would be waited for too.
    """
    try:
        return ImageOps.fit(photos.read(path), (side, side))
    except remote.LostError:
        raise
    except Exception:  # Pillow raises anything on a stranger's bytes, and the photo was good when it was verified
        return Image.new("RGB", (side, side), "grey")


def embedded(image: Image.Image) -> str:
    """The image as the address of a page that needs no other file."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def grid(root: photos.Root, rows: Sequence[Said], columns: int = 4) -> Tensor:
    """The photos with their captions as one picture: uint8 (3, H, W)."""
    line = 12
    height = SIDE + 2 * line + 6
    sheet = Image.new("RGB", (columns * SIDE, max(1, -(-len(rows) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        left, top = place % columns * SIDE, place // columns * height
        sheet.paste(thumbnail(root / row.path), (left, top))
        draw.text((left + 3, top + SIDE + 1), f"{row.predicted} {row.probability:.2f}"[:26], "black")
        draw.text((left + 3, top + SIDE + 1 + line), f"true: {row.true}"[:26], "grey")
    return torch.as_tensor(v2.functional.pil_to_tensor(sheet))
