"""Log to TensorBoard what is not a curve: images, embeddings and hyperparameters."""

import colorsys
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import ImageOps
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torchvision.transforms import v2
from torchvision.utils import make_grid

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import ImageRoot
from flowers.evaluation.class_curves import class_areas, class_curves
from flowers.evaluation.confusion import count_confusion
from flowers.evaluation.figures import plot_class_curves, plot_confusion
from flowers.evaluation.gallery import find_mistakes, image_grid, score_images, sort_by_uncertainty, thumbnail
from flowers.evaluation.predictions import Predictions
from flowers.models.classifier import read_checkpoint
from flowers.runtime.run_folder import LAST_CHECKPOINT
from flowers.runtime.text import one_line, printable

_GRID_IMAGES = 16

_PROJECTOR_IMAGES = 256

# The tab HPARAMS shows five hyperparameters, in the order of their names: unless told otherwise, those that begin with
# data and finetune.
_SEARCHED_MOST = ("finetune.backbone_lr", "model.architecture", "optimizer", "optimizer.lr", "seed")


class RunLogger(TensorBoardLogger):
    """Log to a folder of any name, and group the curves.

    TensorBoard opens the first two groups of charts: these are `train` and `val`. What Lightning and the callbacks log
    outside of a group, or as `lr/…`, is in `train`.
    """

    @property
    def log_dir(self) -> str:
        """The folder as it is given: Lightning would replace `~` and `$NAME`."""
        return str(Path(self.root_dir, str(self.version)))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars at a step."""
        grouped = {
            name if "/" in name and not name.startswith("lr/") else f"train/{name}": value
            for name, value in metrics.items()
        }
        super().log_metrics(grouped, step)


def make_logger(run_dir: str | Path) -> TensorBoardLogger:
    """Return a logger to `<run_dir>/tensorboard`. It hides what an earlier session logged after its last checkpoint."""
    last = Path(run_dir) / LAST_CHECKPOINT
    steps = read_checkpoint(last)["progress"]["steps"] if last.exists() else 0
    return RunLogger(run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=steps)


def log_images(trainer: Trainer, data: ImageDataModule) -> None:
    """Log a grid of augmented training images and one of validation images, eight per row."""
    for logger in tensorboard_loggers(trainer):
        for split, augmented in (("train", True), ("val", False)):
            dataset = data.dataset(split, augmented)
            indices = _evenly_spaced(len(dataset), _GRID_IMAGES)
            grid = make_grid([dataset[index, index][0] for index in indices], pad_value=255)
            logger.experiment.add_image(f"{split}/photos", grid)


def log_predictions(trainer: Trainer, predictions: Predictions, root: ImageRoot, step: int) -> None:
    """Log the confusion matrix, the most confident mistakes and the least confident predictions.

    Args:
        trainer: Its TensorBoard loggers are used.
        predictions: The predictions for the validation images.
        root: Where these images are.
        step: The position on the x-axis.
    """
    scored = score_images(predictions)
    confusion = count_confusion(predictions)
    grids = {"val/surest_mistakes": find_mistakes(scored), "val/least_sure": sort_by_uncertainty(scored)}
    for logger in tensorboard_loggers(trainer):
        figure = plot_confusion(confusion, predictions.classes)
        logger.experiment.add_figure("val/confusion", figure, step, close=False)
        for name, images in grids.items():
            if images:
                logger.experiment.add_image(name, image_grid(root, images[:_GRID_IMAGES]), step)


def log_class_curves(trainer: Trainer, predictions: Predictions) -> None:
    """Log the ROC and precision-recall curves of the classes, for the predictions of the best epoch."""
    curves = class_curves(predictions, class_areas(predictions))
    for logger in tensorboard_loggers(trainer) if curves else ():
        figure = plot_class_curves(curves)
        figure.set_facecolor("white")
        logger.experiment.add_figure("val_best/class_curves", figure, trainer.global_step, close=False)


def log_embeddings(trainer: Trainer, features: Tensor, predictions: Predictions, root: ImageRoot) -> None:
    """Log features (N, F) of images below `root` for the PROJECTOR: 64 principal components, with thumbnails.

    The frame of a thumbnail has the color of its true class: the projector opens without a color map, and nothing that
    is logged can select one.
    """
    indices = _evenly_spaced(len(predictions), _PROJECTOR_IMAGES)
    centered = features[indices].double() - features[indices].double().mean(0)
    components = torch.linalg.svd(centered, full_matrices=False)
    points = (components.U * components.S)[:, :64].float()
    true, predicted = predictions.labels[indices].tolist(), predictions.predicted[indices].tolist()
    names = [one_line(name) for name in predictions.classes]
    labels = [[names[label], names[answer]] for label, answer in zip(true, predicted, strict=True)]
    colors = [
        "#" + "".join(f"{int(255 * part):02x}" for part in colorsys.hsv_to_rgb(label / len(names), 0.9, 0.9))
        for label in true
    ]
    for logger in tensorboard_loggers(trainer):
        thumbnails = [
            ImageOps.expand(thumbnail(root / predictions.paths[index], 40), 4, color)
            for index, color in zip(indices, colors, strict=True)
        ]
        pixels = torch.stack([v2.functional.pil_to_tensor(image) for image in thumbnails]).float() / 255
        # What an interrupted session left behind: torch warns of it on the terminal.
        shutil.rmtree(Path(logger.log_dir, f"{trainer.global_step:05}"), ignore_errors=True)
        logger.experiment.add_embedding(points, labels, pixels, trainer.global_step, "val", ["true", "predicted"])


def log_hyperparameters(trainer: Trainer, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Log one row of the HPARAMS tab, with the same columns for every run, so that the runs of a sweep compare.

    The columns have the names of the keys that one overrides. TensorBoard reads the metrics from scalars, which it also
    charts; `val_best` is the last group of charts, and only the first two are open at the start.

    Args:
        trainer: Its TensorBoard loggers are used.
        config: The configuration of the run.
        metrics: The scores of the best epoch by name.
    """
    optimizer, scheduler = config["optimizer"], config["scheduler"]
    row = {
        "data.balance": config["data"].get("balance", "none"),  # checkpoints of earlier versions have none
        "data.batch_size": config["data"]["batch_size"],
        "data.fold": config["data"].get("fold", 0),  # data=shards has no folds
        "data.image_size": config["data"]["image_size"],
        "finetune.backbone_lr": config["finetune"]["backbone_lr"],
        "finetune.epochs": config["finetune"]["epochs"],
        "head.cached_views": config["head"]["cached_views"],
        "head.epochs": config["head"]["epochs"],
        "model.architecture": config["model"]["architecture"],
        "model.weights": printable(config["model"]["weights"]),
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "optimizer.lr": optimizer["lr"],
        "optimizer.weight_decay": optimizer.get("weight_decay", 0.0),
        "scheduler": scheduler["_target_"].rpartition(".")[2],
        "seed": config["seed"],
        "trainer.precision": str(trainer.precision),
    }
    scalars = {f"val_best/{name}": value for name, value in metrics.items()}
    for logger in tensorboard_loggers(trainer):
        logger.log_metrics(scalars, step=trainer.global_step)
        experiment, start, end = hparams(row, scalars)  # type: ignore[no-untyped-call]
        _show_first(experiment, _SEARCHED_MOST)
        writer = logger.experiment._get_file_writer()
        for summary in (experiment, start, end):
            writer.add_summary(summary, trainer.global_step)


def _show_first(experiment: Any, names: Collection[str]) -> None:
    """Let TensorBoard show these hyperparameters first, as it does with those that differ between runs."""
    (value,) = experiment.value
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    value.metadata.plugin_data.content = content.SerializeToString()


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers of a trainer; none on ranks other than the first."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero]


def _evenly_spaced(length: int, count: int) -> list[int]:
    """Return at most `count` indices from 0 to `length` - 1."""
    return [int(index) for index in torch.linspace(0, length - 1, min(count, length)).long()]
