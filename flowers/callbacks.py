"""What happens around the training steps: a line an epoch, times, and a stop where the loss is no number."""

import logging
import sys
import time
from collections import defaultdict
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

log = logging.getLogger(__name__)


def progress() -> Callback:
    """A Rich bar where standard output is a terminal, else a line an epoch."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else EpochLines()


class EpochLines(ProgressBar):
    """Logs one line an epoch: both losses and accuracies."""

    def __init__(self) -> None:
        super().__init__()
        self._is_on = True

    def enable(self) -> None:
        """Lines are logged, by Lightning's wish."""
        self._is_on = True

    def disable(self) -> None:
        """None are: this is not the first of several processes."""
        self._is_on = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the line once validation has run too."""
        if not self._is_on:
            return
        metrics = trainer.callback_metrics
        names = [f"{split}/{metric}" for split in ("train", "val") for metric in ("loss", "accuracy")]
        values = "  ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
        log.info("%s  epoch %d/%s  %s", pl_module.stage, trainer.current_epoch + 1, trainer.max_epochs, values)


class Clock(Callback):
    """Counts each stage's seconds, over all the sessions of a run, and logs photos a second.

    `seconds` holds all of a stage (features, validation, checkpoints), `training` its steps alone, `photos` how many
    went through them.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.training: dict[str, float] = defaultdict(float)
        self.photos: dict[str, int] = defaultdict(int)
        self._stage = ""
        self._last = self._epoch_start = 0.0
        self._epoch_photos = 0
        self._rate = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the stage's clock."""
        self._stage, self._last = str(pl_module.stage), time.perf_counter()
        self._epoch_start, self._epoch_photos = self._last, 0  # also of an epoch that is gone on with inside

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops it."""
        self._tick()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self._epoch_start, self._epoch_photos = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch's photos, and measures once the last one is through."""
        self._epoch_photos += len(batch[1])
        if trainer.is_last_batch:
            seconds = time.perf_counter() - self._epoch_start
            self.photos[self._stage] += self._epoch_photos * trainer.world_size
            self.training[self._stage] += seconds
            self._rate = self._epoch_photos / seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch's photos a second, validation not counted."""
        pl_module.log("photos_per_second", self._rate, sync_dist=True, reduce_fx="sum")

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._last
        self._last = now

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        self._tick()
        return {"seconds": dict(self.seconds), "training": dict(self.training), "photos": dict(self.photos)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adds what earlier sessions took."""
        self.seconds.update(state_dict["seconds"])
        self.training.update(state_dict["training"])
        self.photos.update(state_dict["photos"])


class FiniteLoss(Callback):
    """Stops the run where a loss is no finite number, before a checkpoint could keep what made it.

    Looks at the training loss every so many steps (a look waits for the device) and at the validation loss, which is
    known before any checkpoint is written.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raises ValueError where the batch's loss is not finite."""
        if trainer.is_last_batch or batch_idx % self.every == 0:
            _check_finite("training", outputs["loss"], trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ValueError where the validation loss is not finite."""
        if "val/loss" in trainer.callback_metrics:
            _check_finite("validation", trainer.callback_metrics["val/loss"], trainer.current_epoch)


def _check_finite(name: str, loss: torch.Tensor, epoch: int) -> None:
    if not torch.isfinite(loss):
        raise ValueError(
            f"the {name} loss became {loss.item()} in epoch {epoch + 1}: "
            "try a smaller optimizer.lr, trainer.gradient_clip_val=1, or trainer.precision=32-true"
        )
