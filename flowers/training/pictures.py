"""The images that a run logs to its trackers: photos as the network sees them, mistakes, figures."""

import json

import numpy as np
import torch
from lightning import Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch import Tensor
from torchvision.utils import make_grid

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import ImageRoot
from flowers.evaluation.class_curves import class_areas, class_curves
from flowers.evaluation.confusion import MATRIX_CLASSES, count_confusion
from flowers.evaluation.figures import plot_class_curves, plot_confusion
from flowers.evaluation.gallery import find_mistakes, image_grid, score_images, sort_by_uncertainty
from flowers.runs.predictions import Predictions
from flowers.runtime.launch import is_rank_zero
from flowers.training.trackers.tensorboard import evenly_spaced
from flowers.training.trackers.tracker import Picture, each_tracker

_GRID_IMAGES = 16
# Of train and val, by all that their pixels depend on: the next job of a multirun logs them again.
_GRIDS: dict[str, Picture] = {}
# Where the axes of a figure are, by all that this depends on: to compute it takes as long as to draw the figure.
_POSITIONS: dict[tuple[str, ...], list[Bbox]] = {}


def log_images(trainer: Trainer, data: ImageDataModule) -> None:
    """Log a grid of augmented training images and one of validation images, eight per row."""
    for split, augmented in (("train", True), ("val", False)) if shows_images(trainer) else ():
        dataset = data.dataset(split, augmented)
        digests = {index: dataset.digests[index] for index in evenly_spaced(len(dataset), _GRID_IMAGES)}
        key = json.dumps([digests, data.transform_settings(augmented)])
        if key not in _GRIDS:
            while len(_GRIDS) >= 2:
                del _GRIDS[next(iter(_GRIDS))]
            _GRIDS[key] = _from_tensor(make_grid([dataset[index, index][0] for index in digests], pad_value=255))
        _log(trainer, f"{split}/photos", _GRIDS[key], 0)


def log_predictions(trainer: Trainer, predictions: Predictions, root: ImageRoot, step: int) -> None:
    """Log the confusion matrix, the most confident mistakes and the least confident predictions.

    Args:
        trainer: Its loggers are used.
        predictions: The predictions for the validation images.
        root: Where these images are.
        step: The position on the x-axis.
    """
    if not shows_images(trainer):
        return
    scored = score_images(predictions)
    grids = {"val/surest_mistakes": find_mistakes(scored), "val/least_sure": sort_by_uncertainty(scored)}
    figure = plot_confusion(count_confusion(predictions), predictions.classes)
    # Above `MATRIX_CLASSES`, the labels are those of the pairs that are confused most.
    texts = ("confusion", *predictions.classes) if len(predictions.classes) <= MATRIX_CLASSES else ()
    _log(trainer, "val/confusion", draw(figure, texts), step)
    for name, images in grids.items():
        if images:
            _log(trainer, name, _from_tensor(image_grid(root, images[:_GRID_IMAGES])), step)


def log_class_curves(trainer: Trainer, predictions: Predictions) -> None:
    """Log the ROC and precision-recall curves of the classes, for the predictions of the best epoch."""
    curves = class_curves(predictions, class_areas(predictions)) if shows_images(trainer) else {}
    if curves:
        picture = draw(plot_class_curves(curves), ("curves", *curves))
        _log(trainer, "val_best/class_curves", picture, trainer.global_step)


def shows_images(trainer: Trainer) -> bool:
    """Return whether this process has a logger; none on ranks other than the first."""
    return bool(trainer.loggers) and is_rank_zero()


def _log(trainer: Trainer, name: str, picture: Picture, step: int) -> None:
    each_tracker(trainer, lambda tracker: tracker.log_image(name, picture, step))


def draw(figure: Figure, texts: tuple[str, ...]) -> Picture:
    """Draw a figure.

    Args:
        figure: The figure.
        texts: What its layout depends on, for figures with the same layout in the next job; empty if it is its own.
    """
    figure.set_facecolor("white")
    if positions := _POSITIONS.get(texts):
        figure.set_layout_engine("none")
        for axis, position in zip(figure.axes, positions, strict=True):
            axis.set_position(position)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    if texts and not positions:
        while len(_POSITIONS) >= 2:
            del _POSITIONS[next(iter(_POSITIONS))]
        _POSITIONS[texts] = [axis.get_position(original=True) for axis in figure.axes]
    return Picture(np.asarray(canvas.buffer_rgba())[:, :, :3])  # type: ignore[no-untyped-call]


def _from_tensor(image: Tensor) -> Picture:
    """Return the picture of photos in a uint8 image (3, H, W)."""
    assert image.dtype == torch.uint8
    return Picture(image.permute(1, 2, 0).numpy(), shows_photos=True)
