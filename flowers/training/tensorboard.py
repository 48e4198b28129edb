"""What TensorBoard shows beside the curves: images, embeddings and hyperparameters."""

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

_GRID_IMAGES = 16  # photos in a grid


_PROJECTOR_IMAGES = 256  # photos in the projector


def make_logger(run_dir: str | Path) -> TensorBoardLogger:
    """Logs to `<run_dir>/tensorboard`; of an earlier session, what came after its last checkpoint is hidden."""
    last = Path(run_dir) / LAST_CHECKPOINT
    step = read_checkpoint(last)["global_step"] if last.exists() else 0
    return TensorBoardLogger(run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=step)


def log_images(trainer: Trainer, data: ImageDataModule) -> None:
    """A grid of training photos, augmented, and one of validation photos: eight a row."""
    for board in tensorboard_loggers(trainer):
        for split, augmented in (("train", True), ("val", False)):
            dataset = data.dataset(split, augmented)
            spread = torch.linspace(0, len(dataset) - 1, min(_GRID_IMAGES, len(dataset))).long().tolist()
            grid = make_grid([dataset[index, index][0] for index in spread], pad_value=255)
            board.experiment.add_image(f"photos/{split}", grid)


def log_predictions(trainer: Trainer, predictions: Predictions, root: ImageRoot) -> None:
    """The confusion matrix, the surest mistakes and the least sure photos, which lie below `root`."""
    said = score_images(predictions)
    matrix = multiclass_confusion_matrix(predictions.predicted, predictions.labels, len(predictions.classes)).tolist()
    step = trainer.fit_loop.epoch_loop._batches_that_stepped  # that of the curves
    chosen = {"val/surest_mistakes": find_mistakes(said), "val/least_sure": sort_by_uncertainty(said)}
    for board in tensorboard_loggers(trainer):
        figure = plot_confusion(matrix, predictions.classes)
        board.experiment.add_figure("val/confusion", figure, step, close=False)
        for name, rows in chosen.items():
            if rows:
                board.experiment.add_image(name, image_grid(root, rows[:_GRID_IMAGES]), step)


def log_embeddings(trainer: Trainer, features: Tensor, predictions: Predictions, root: ImageRoot) -> None:
    """For the PROJECTOR: features (N, F) of photos below `root`, in 64 principal components, with thumbnails."""
    spread = torch.linspace(0, len(predictions) - 1, min(_PROJECTOR_IMAGES, len(predictions))).long().tolist()
    centred = features[spread].double() - features[spread].double().mean(0)
    components = torch.linalg.svd(centred, full_matrices=False)
    points = (components.U * components.S)[:, :64].float()
    labels = [
        [predictions.classes[int(predictions.labels[place])], predictions.classes[int(predictions.predicted[place])]]
        for place in spread
    ]
    for board in tensorboard_loggers(trainer):
        thumbnails = [thumbnail(root / predictions.paths[place], 48) for place in spread]
        pixels = torch.stack([v2.functional.pil_to_tensor(image) for image in thumbnails]).float() / 255
        board.experiment.add_embedding(points, labels, pixels, trainer.global_step, "val", ["true", "predicted"])


def log_hyperparameters(trainer: Trainer, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """One row of the HPARAMS tab; the same columns for every run, so that runs of a sweep compare."""
    optimizer, scheduler = config["optimizer"], config["scheduler"]
    row = {  # named so that what is swept most comes first: TensorBoard shows the first five by name
        "lr": optimizer["lr"],
        "lr_backbone": config["finetune"]["backbone_lr"] or optimizer["lr"],
        "model": config["model"]["architecture"],
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "seed": config["seed"],
        "stage_finetune_epochs": config["finetune"]["epochs"],
        "stage_head_epochs": config["head"]["epochs"],
        "stage_head_views": config["head"]["cached_views"],
        "train_batch_size": config["data"]["batch_size"],
        "train_fold": config["data"].get("fold", 0),  # shards have their split inside
        "train_image_size": config["data"]["image_size"],
        "train_precision": str(trainer.precision),
        "train_schedule": scheduler["_target_"].rpartition(".")[2],
        "weight_decay": optimizer.get("weight_decay", 0.0),
        "weights": str(config["model"]["weights"]),
    }
    for board in tensorboard_loggers(trainer):
        board.log_hyperparams(row, dict(metrics), step=trainer.global_step)


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """The loggers of this kind that a trainer has; none in any process but the first."""
    return [board for board in trainer.loggers if isinstance(board, TensorBoardLogger) and trainer.is_global_zero]
