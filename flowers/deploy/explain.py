"""Pictures that show an image beside its Grad-CAM heat map."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from flowers.data.images import ImageMemoryError, read_error_reason, read_image
from flowers.data.sources.listing import expand_image_paths
from flowers.data.transforms import eval_transform
from flowers.deploy.classifier import Classifier, Prediction
from flowers.deploy.gradcam import grad_cam
from flowers.deploy.model_files import find_classifier
from flowers.evaluation.gallery import caption_font
from flowers.runtime.extras import require_extra
from flowers.runtime.files import atomic_write
from flowers.runtime.logging import progress_bar
from flowers.runtime.text import one_line
from flowers.settings.schema.programs import ExplainSettings
from flowers.settings.suggestions import did_you_mean

log = logging.getLogger(__name__)


_IMAGE_WIDTH = 448  # pixels, approximately, of an image in a picture


_GAP, _TEXT_SIZE = 8, 22  # pixels


class ImageCrops(NamedTuple):
    """The part of an image that the network sees.

    Attributes:
        pixels: The input of the network, uint8 (3, S, S).
        picture: The same at a higher resolution, for people: uint8 (3, P, P).
    """

    pixels: Tensor
    picture: Tensor


class Explanation(NamedTuple):
    """An explained prediction.

    Attributes:
        prediction: The prediction.
        picture: The image and its heat map side by side, above the caption.
        caption: The class and its probability.
    """

    prediction: Prediction
    picture: Image.Image
    caption: str


def crop_image(classifier: Classifier, image: Image.Image) -> ImageCrops:
    """Return the part of an image that the network sees.

    Args:
        classifier: The trained classifier.
        image: An upright RGB image, as `flowers.data.images.read_image` returns it.
    """
    seen = classifier.model.preprocessing
    scale = max(1, round(_IMAGE_WIDTH / seen.image_size))
    enlarged = eval_transform(replace(seen, image_size=seen.image_size * scale, resize=seen.resize * scale))
    whole = pil_to_tensor(image)
    return ImageCrops(*(torch.as_tensor(crop(whole)) for crop in (classifier.eval_transform, enlarged)))


def explain_images(
    classifier: Classifier, images: Sequence[ImageCrops], label: str | None = None
) -> Iterator[Explanation]:
    """Classify images, and show which parts of each speak for a class.

    Args:
        classifier: The trained classifier.
        images: At least one.
        label: The class. None for the predicted class of each image.

    Yields:
        The explanation of each image.

    Raises:
        ValueError: There is no such class.
    """
    if label is not None and label not in classifier.classes:
        suggestion = did_you_mean(label, classifier.classes)
        classes = ", ".join(classifier.classes)
        raise ValueError(one_line(f"label={label}: no such class{suggestion} (expected one of {classes})"))
    index = None if label is None else classifier.classes.index(label)
    probabilities, heat_maps, strangeness = grad_cam(classifier, torch.stack([image.pixels for image in images]), index)
    predictions = classifier.predictions(probabilities, strangeness)
    for image, prediction, heat_map in zip(images, predictions, heat_maps, strict=True):
        explained = prediction.label if label is None else label
        caption = f"{explained}, probability {prediction.probabilities[explained]:.3f}"
        if explained != prediction.label:
            caption += f" (most likely: {prediction.label}, {prediction.probability:.3f})"
        if prediction.rejected:
            caption += f"; none of these (strangeness {prediction.strangeness:.3g})"
        yield Explanation(prediction, side_by_side(image.picture, heat_map, caption), caption)


def overlay_heat_map(image: Tensor, heat_map: Tensor) -> Image.Image:
    """Blend a heat map over the gray version of an image.

    Args:
        image: uint8 (3, H, W).
        heat_map: Float (h, w) of any size, from 0 (blue) to 1 (red).

    Returns:
        An RGB image of H x W pixels.
    """
    import matplotlib

    picture = to_pil_image(image)
    resized = Image.fromarray(heat_map.numpy()).resize(picture.size, Image.Resampling.BICUBIC)
    colors = matplotlib.colormaps["turbo"](np.asarray(resized).clip(0, 1), bytes=True)
    return Image.blend(picture.convert("L").convert("RGB"), Image.fromarray(colors).convert("RGB"), 0.5)


def side_by_side(image: Tensor, heat_map: Tensor, caption: str) -> Image.Image:
    """Draw an image, to its right the same image under its heat map, and a caption below.

    Args:
        image: uint8 (3, H, W).
        heat_map: Float (h, w), from 0 to 1.
        caption: It is drawn in one line, in smaller letters if it is too long.
    """
    left = to_pil_image(image)
    width = 2 * left.width + _GAP
    picture = Image.new("RGB", (width, left.height + 2 * _TEXT_SIZE), "white")
    picture.paste(left, (0, 0))
    picture.paste(overlay_heat_map(image, heat_map), (left.width + _GAP, 0))
    caption = one_line(caption)
    fitting = (width - 2 * _GAP) / max(1.0, caption_font(_TEXT_SIZE).getlength(caption))
    size = max(1, math.floor(_TEXT_SIZE * min(1.0, fitting)))
    center = (width // 2, left.height + _TEXT_SIZE)
    ImageDraw.Draw(picture).text(center, caption, "black", caption_font(size), anchor="mm")
    return picture


def run_explanation(settings: ExplainSettings) -> int:
    """Write a picture below `settings.output` for each image that `settings.photos` names.

    Args:
        settings: Composed from conf/explain.yaml.

    Returns:
        How many files could be read. The others are logged and skipped.

    Raises:
        ValueError: A setting is wrong, there is no run, or no file could be read.
    """
    require_extra("a heat map", "explain", "captum")
    output, label = Path(settings.output), None if settings.label is None else str(settings.label)
    run = find_classifier(settings.run)
    files = expand_image_paths(settings.photos)
    pictures = _picture_paths(files, output)
    classifier = Classifier.load(run, settings.accelerator, settings.precision)
    console, readable = Console(soft_wrap=True, markup=False, highlight=False), 0
    pairs = progress_bar(list(zip(files, pictures, strict=True)), "Explaining")
    cropped = (
        (path, crop_image(classifier, image)) for file, path in pairs if (image := _read_or_warn(file, classifier))
    )
    while batch := list(islice(cropped, classifier.backbone.batch_size)):
        explanations = explain_images(classifier, [crops for _, crops in batch], label)
        for (path, _), explanation in zip(batch, explanations, strict=True):
            _save_picture(explanation.picture, path)
            console.print(one_line(f"{path}: {explanation.caption}"))
            readable += 1
    if not readable:
        raise ValueError(f"none of {len(files)} files could be read: expected images (JPEG, PNG, WebP, BMP, GIF, TIFF)")
    return readable


def _read_or_warn(file: Path, classifier: Classifier) -> Image.Image | None:
    """Return the image. Log a warning and return None if the file cannot be read."""
    try:
        return read_image(file, classifier.max_pixels, bit_depth=classifier.model.preprocessing.bit_depth)
    except ImageMemoryError:
        raise
    except Exception as error:  # Pillow raises anything from EOFError to struct.error for a damaged file
        log.warning("skipped %s: %s", one_line(file), one_line(read_error_reason(error)))
        return None


def _save_picture(picture: Image.Image, path: Path) -> None:
    with atomic_write(path) as part:
        picture.save(part, "PNG")


def _picture_paths(files: Sequence[Path], output: Path) -> list[Path]:
    """Return the path of each picture: the image's path relative to the common folder of all, plus ".png"."""
    absolute = [Path(os.path.normpath(file.absolute())) for file in files]  # not resolved: a link keeps its name
    # Not Path.resolve: before Python 3.13 it raises RuntimeError for a link to itself.
    if any(Path(os.path.realpath(file)).is_relative_to(os.path.realpath(output)) for file in files):
        raise ValueError(f"output={output}: contains some of the images to explain; give another folder")
    common = os.path.commonpath([file.parent for file in absolute])
    return [output / f"{file.relative_to(common)}.png" for file in absolute]
