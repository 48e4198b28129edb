"""What a classifier goes by in a photo, as a picture."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from flowers import transforms
from flowers.classifier import Classifier
from flowers.heat import heat
from flowers.nearest import nearest

_WIDTH = 448  # pixels, about, of a photo in a picture
_GAP, _LETTERS = 8, 22  # pixels


class Explanation(NamedTuple):
    """The photo and the heat side by side, and what is said below them."""

    picture: Image.Image
    caption: str


def explanation(classifier: Classifier, image: Image.Image, label: str | None = None) -> Explanation:
    """Of the part of a photo that the network sees, for the class `label`; None for the one predicted.

    The image is upright RGB, as `photos.read` gives it. Raises ValueError for a label that is no class's.
    """
    if label is not None and label not in classifier.classes:
        known = ", ".join(classifier.classes)
        raise ValueError(f"label={label}: no such class{nearest(label, classifier.classes)} (there are {known})")
    said, pixels = classifier(image), classifier.pixels(image)
    shown = said.label if label is None else label
    warmth = heat(classifier.model, pixels, classifier.classes.index(shown))
    caption = f"{shown}, probability {said.probabilities[shown]:.3f}"
    if shown != said.label:
        caption += f" (likeliest: {said.label}, {said.probability:.3f})"
    times = max(1, round(_WIDTH / pixels.shape[-1]))  # the same part in more pixels, for people
    size, resize = (classifier.model.hparams[name] * times for name in ("image_size", "resize"))
    sharp = torch.as_tensor(transforms.centred(size, resize)(pil_to_tensor(image)))
    return Explanation(beside(sharp, warmth, caption), caption)


def overlay(photo: Tensor, heat: Tensor) -> Image.Image:
    """The photo, uint8 (3, H, W), in grey under its heat of any size, 0 to 1: blue where cold, red where hot."""
    import matplotlib  # comes with captum

    image = to_pil_image(photo)
    warmth = Image.fromarray(heat.numpy()).resize(image.size, Image.Resampling.BICUBIC)
    colours = matplotlib.colormaps["turbo"](np.asarray(warmth).clip(0, 1), bytes=True)
    return Image.blend(image.convert("L").convert("RGB"), Image.fromarray(colours).convert("RGB"), 0.5)


def beside(photo: Tensor, heat: Tensor, caption: str) -> Image.Image:
    """The photo, uint8 (3, H, W), right of it the same under its heat, and below them the caption."""
    image = to_pil_image(photo)
    width = 2 * image.width + _GAP
    picture = Image.new("RGB", (width, image.height + 2 * _LETTERS), "white")
    picture.paste(image, (0, 0))
    picture.paste(overlay(photo, heat), (image.width + _GAP, 0))
    size = _LETTERS * min(1.0, (width - 2 * _GAP) / _font(_LETTERS).getlength(caption))
    middle = (width // 2, image.height + _LETTERS)
    ImageDraw.Draw(picture).text(middle, caption, "black", _font(size), anchor="mm")
    return picture


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    import matplotlib

    # Its own, since Pillow's has few letters beyond English ones.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
