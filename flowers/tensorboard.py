"""What TensorBoard shows beyond the curves: the photos as the network sees them, and runs side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid

from flowers import checkpoints
from flowers.data import FlowersData

_SHOWN = 16  # photos in a grid


def logger(run_dir: str | Path) -> TensorBoardLogger:
    """Logs to `<run_dir>/tensorboard`; of an earlier session, what came after its last checkpoint is hidden."""
    last = Path(run_dir) / checkpoints.LAST
    step = checkpoints.read(last)["global_step"] if last.exists() else 0
    return TensorBoardLogger(run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=step)


def log_photos(trainer: Trainer, data: FlowersData) -> None:
    """A grid of training photos, augmented, and one of validation photos: eight a row."""
    for board in _boards(trainer):
        for split, augmented in (("train", True), ("val", False)):
            dataset = data.dataset(split, augmented)
            spread = torch.linspace(0, len(dataset) - 1, min(_SHOWN, len(dataset))).long().tolist()
            grid = make_grid([dataset[index, index][0] for index in spread], pad_value=255)
            board.experiment.add_image(f"photos/{split}", grid)


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
        "stage_head_views": config["head"]["views"],
        "train_batch_size": config["data"]["batch_size"],
        "train_fold": config["data"]["fold"],
        "train_image_size": config["data"]["image_size"],
        "train_precision": str(trainer.precision),
        "train_schedule": scheduler["_target_"].rpartition(".")[2],
        "weight_decay": optimizer.get("weight_decay", 0.0),
        "weights": str(config["model"]["weights"]),
    }
    for board in _boards(trainer):
        board.log_hyperparams(row, dict(metrics), step=trainer.global_step)


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [board for board in trainer.loggers if isinstance(board, TensorBoardLogger) and trainer.is_global_zero]
