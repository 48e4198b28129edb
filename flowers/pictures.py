"""What TensorBoard's IMAGES show of a run: the photos it learns from, which class is taken for which, its mistakes."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from flowers import tensorboard
from flowers.data import FlowersData
from flowers.features import FrozenFeatures
from flowers.predictions import Predictions


class Pictures(Callback):
    """Logs photos at the start, and the confusion matrix, the surest mistakes and the least sure photos of validation.

    These at the end of each stage, and before that no more often than each `every_seconds`: an epoch on kept features
    takes less time than its pictures. Without this callback, the PROJECTOR is left empty too.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._last = time.monotonic()
        self._said: list[tuple[Tensor, Tensor]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs photos as the network sees them, once a run."""
        if trainer.current_epoch == 0:
            tensorboard.log_photos(trainer, _data(trainer))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether this epoch is shown. Of several processes each has its share of the photos only."""
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        is_due = is_last or time.monotonic() - self._last >= self.every_seconds
        self._said = [] if is_due and trainer.world_size == 1 and tensorboard.boards(trainer) else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the logits (B, C)."""
        if self._said is not None:
            self._said.append((outputs["logits"].double().cpu(), batch[1].cpu()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the pictures."""
        if not self._said:
            return
        data = _data(trainer)
        logits, labels = (torch.cat(parts) for parts in zip(*self._said, strict=True))
        rows = [row for row in data.rows if row.split == "val"][: len(labels)]
        predictions = Predictions([row.path for row in rows], labels, logits, data.classes)
        tensorboard.log_predictions(trainer, predictions, data.root)
        self._said, self._last = None, time.monotonic()


def _data(trainer: Trainer) -> FlowersData:
    source: Any = trainer.datamodule  # type: ignore[attr-defined]
    return source.data if isinstance(source, FrozenFeatures) else source
