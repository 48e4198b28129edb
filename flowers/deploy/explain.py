"""Pictures that show an image beside its Grad-CAM heat map."""

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from flowers.data.folder import expand_image_paths
from flowers.data.images import read_error_reason, read_image
from flowers.data.transforms import eval_transform
from flowers.deploy.classifier import Classifier
from flowers.deploy.gradcam import grad_cam
from flowers.runtime.config import did_you_mean, to_container
from flowers.runtime.files import atomic_write
from flowers.runtime.logging import progress_bar

log = logging.getLogger(__name__)


_WIDTH = 448  # pixels, about, of a photo in a picture


_GAP, _LETTERS = 8, 22  # pixels


class Explanation(NamedTuple):
    """The photo and the heat side by side, and what is said below them."""

    picture: Image.Image
    caption: str


def explain_image(classifier: Classifier, image: Image.Image, label: str | None = None) -> Explanation:
    """Of the part of a photo that the network sees, for the class `label`; None for the one predicted.

    The image is upright RGB, as `photos.read` gives it. Raises ValueError for a label that is no class's.
    """
    if label is not None and label not in classifier.classes:
        known = ", ".join(classifier.classes)
        raise ValueError(f"label={label}: no such class{did_you_mean(label, classifier.classes)} (there are {known})")
    said, pixels = classifier(image), classifier.pixels(image)
    shown = said.label if label is None else label
    warmth = grad_cam(classifier.model, pixels, classifier.classes.index(shown))
    caption = f"{shown}, probability {said.probabilities[shown]:.3f}"
    if shown != said.label:
        caption += f" (likeliest: {said.label}, {said.probability:.3f})"
    times = max(1, round(_WIDTH / pixels.shape[-1]))  # the same part in more pixels, for people
    size, resize = (classifier.model.hparams[name] * times for name in ("image_size", "resize"))
    sharp = torch.as_tensor(eval_transform(size, resize)(pil_to_tensor(image)))
    return Explanation(side_by_side(sharp, warmth, caption), caption)


def overlay_heat_map(photo: Tensor, heat: Tensor) -> Image.Image:
    """The photo, uint8 (3, H, W), in grey under its heat of any size, 0 to 1: blue where cold, red where hot."""
    import matplotlib  # comes with captum

    image = to_pil_image(photo)
    warmth = Image.fromarray(heat.numpy()).resize(image.size, Image.Resampling.BICUBIC)
    colours = matplotlib.colormaps["turbo"](np.asarray(warmth).clip(0, 1), bytes=True)
    return Image.blend(image.convert("L").convert("RGB"), Image.fromarray(colours).convert("RGB"), 0.5)


def side_by_side(photo: Tensor, heat: Tensor, caption: str) -> Image.Image:
    """The photo, uint8 (3, H, W), right of it the same under its heat, and below them the caption."""
    image = to_pil_image(photo)
    width = 2 * image.width + _GAP
    picture = Image.new("RGB", (width, image.height + 2 * _LETTERS), "white")
    picture.paste(image, (0, 0))
    picture.paste(overlay_heat_map(photo, heat), (image.width + _GAP, 0))
    size = _LETTERS * min(1.0, (width - 2 * _GAP) / _font(_LETTERS).getlength(caption))
    middle = (width // 2, image.height + _LETTERS)
    ImageDraw.Draw(picture).text(middle, caption, "black", _font(size), anchor="mm")
    return picture


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    import matplotlib

    # Its own, since Pillow's has few letters beyond English ones.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def run_explanation(cfg: DictConfig) -> int:
    """Writes a picture for each photo that `cfg` names, below `cfg.output`; returns how many could be read."""

    trained, output, label = str(cfg.run), Path(str(cfg.output)), None if cfg.label is None else str(cfg.label)
    files = expand_image_paths(to_container(cfg)["photos"])
    pictures = _picture_paths(files, output)
    classifier = Classifier.load(trained, cfg.accelerator, cfg.precision)
    console, written = Console(soft_wrap=True, markup=False, highlight=False), 0
    for file, path in progress_bar(list(zip(files, pictures, strict=True)), "Explaining"):
        image = _read_or_warn(file)
        if image is None:
            continue
        picture, caption = explain_image(classifier, image, label)
        _save_picture(picture, path)
        console.print(f"{path}: {caption}")
        written += 1
    if not written:
        raise ValueError(f"none of {len(files)} files could be read: wanted photos (JPEG, PNG, WebP, BMP, GIF, TIFF)")
    return written


def _read_or_warn(file: Path) -> Image.Image | None:
    """The photo; None, and a line that says why, where there is none."""

    try:
        return read_image(file)
    except MemoryError:
        raise
    except Exception as error:  # a stranger's bytes make Pillow raise anything
        log.warning("passed over, %s: %s", file, read_error_reason(error))
        return None


def _save_picture(picture: Image.Image, path: Path) -> None:

    try:
        with atomic_write(path) as beside:
            picture.save(beside, "PNG")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def _picture_paths(files: Sequence[Path], output: Path) -> list[Path]:
    """The picture of each photo: its path below the folder that all are in, below `output`, with ".png" added."""
    absolute = [Path(os.path.normpath(file.absolute())) for file in files]  # not resolved: a link keeps its name
    if any(file.is_relative_to(output.resolve()) for file in map(Path.resolve, files)):
        raise ValueError(f"output={output} holds photos that are to be explained: give another folder")
    top = os.path.commonpath([file.parent for file in absolute])
    return [output / f"{file.relative_to(top)}.png" for file in absolute]
