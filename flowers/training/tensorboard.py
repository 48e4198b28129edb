"""Log to TensorBoard what is not a curve: images, embeddings and hyperparameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.transforms import v2
from torchvision.utils import make_grid

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import ImageRoot
from flowers.evaluation.figures import plot_confusion
from flowers.evaluation.gallery import find_mistakes, image_grid, score_images, sort_by_uncertainty, thumbnail
from flowers.evaluation.predictions import Predictions
from flowers.models.classifier import read_checkpoint
from flowers.runtime.run_folder import LAST_CHECKPOINT

_GRID_IMAGES = 16

_PROJECTOR_IMAGES = 256


def make_logger(run_dir: str | Path) -> TensorBoardLogger:
    """Return a logger to `<run_dir>/tensorboard`. It hides what an earlier session logged after its last checkpoint."""
    last = Path(run_dir) / LAST_CHECKPOINT
    steps = read_checkpoint(last)["progress"]["steps"] if last.exists() else 0
    return TensorBoardLogger(run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=steps)


def log_images(trainer: Trainer, data: ImageDataModule) -> None:
    """Log a grid of augmented training images and one of validation images, eight per row."""
    for logger in tensorboard_loggers(trainer):
        for split, augmented in (("train", True), ("val", False)):
            dataset = data.dataset(split, augmented)
            indices = _evenly_spaced(len(dataset), _GRID_IMAGES)
            grid = make_grid([dataset[index, index][0] for index in indices], pad_value=255)
            logger.experiment.add_image(f"photos/{split}", grid)


def log_predictions(trainer: Trainer, predictions: Predictions, root: ImageRoot, step: int) -> None:
    """Log the confusion matrix, the most confident mistakes and the least confident predictions.

    Args:
        trainer: Its TensorBoard loggers are used.
        predictions: The predictions for the validation images.
        root: Where these images are.
        step: The position on the x-axis.
    """
    scored = score_images(predictions)
    matrix = multiclass_confusion_matrix(predictions.predicted, predictions.labels, len(predictions.classes)).tolist()
    grids = {"val/surest_mistakes": find_mistakes(scored), "val/least_sure": sort_by_uncertainty(scored)}
    for logger in tensorboard_loggers(trainer):
        figure = plot_confusion(matrix, predictions.classes)
        logger.experiment.add_figure("val/confusion", figure, step, close=False)
        for name, images in grids.items():
            if images:
                logger.experiment.add_image(name, image_grid(root, images[:_GRID_IMAGES]), step)


def log_embeddings(trainer: Trainer, features: Tensor, predictions: Predictions, root: ImageRoot) -> None:
    """Log features (N, F) of images below `root` for the PROJECTOR: 64 principal components, with thumbnails."""
    indices = _evenly_spaced(len(predictions), _PROJECTOR_IMAGES)
    centered = features[indices].double() - features[indices].double().mean(0)
    components = torch.linalg.svd(centered, full_matrices=False)
    points = (components.U * components.S)[:, :64].float()
    labels = [
        [predictions.classes[int(predictions.labels[index])], predictions.classes[int(predictions.predicted[index])]]
        for index in indices
    ]
    for logger in tensorboard_loggers(trainer):
        thumbnails = [thumbnail(root / predictions.paths[index], 48) for index in indices]
        pixels = torch.stack([v2.functional.pil_to_tensor(image) for image in thumbnails]).float() / 255
        logger.experiment.add_embedding(points, labels, pixels, trainer.global_step, "val", ["true", "predicted"])


def log_hyperparameters(trainer: Trainer, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Log one row of the HPARAMS tab, with the same columns for every run, so that the runs of a sweep compare."""
    optimizer, scheduler = config["optimizer"], config["scheduler"]
    row = {  # TensorBoard shows the first five in the order of their names: those that are searched most often
        "lr": optimizer["lr"],
        "lr_backbone": config["finetune"]["backbone_lr"] or optimizer["lr"],
        "model": config["model"]["architecture"],
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "seed": config["seed"],
        "stage_finetune_epochs": config["finetune"]["epochs"],
        "stage_head_epochs": config["head"]["epochs"],
        "stage_head_views": config["head"]["cached_views"],
        "train_batch_size": config["data"]["batch_size"],
        "train_fold": config["data"].get("fold", 0),  # data=shards has no folds
        "train_image_size": config["data"]["image_size"],
        "train_precision": str(trainer.precision),
        "train_schedule": scheduler["_target_"].rpartition(".")[2],
        "weight_decay": optimizer.get("weight_decay", 0.0),
        "weights": str(config["model"]["weights"]),
    }
    for logger in tensorboard_loggers(trainer):
        logger.log_hyperparams(row, dict(metrics), step=trainer.global_step)


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers of a trainer; none on ranks other than the first."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero]


def _evenly_spaced(length: int, count: int) -> list[int]:
    """Return at most `count` indices from 0 to `length` - 1."""
    return [int(index) for index in torch.linspace(0, length - 1, min(count, length)).long()]
