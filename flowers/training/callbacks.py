"""Lightning callbacks: epoch summaries, stage times, image logging, non-finite losses."""

import logging
import sys
import time
from collections import defaultdict
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.predictions import Predictions
from flowers.features.datamodule import FeatureDataModule
from flowers.training.tensorboard import log_images, log_predictions, tensorboard_loggers

log = logging.getLogger(__name__)


def make_progress_bar() -> Callback:
    """A Rich bar where standard output is a terminal, else a line an epoch."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else EpochSummaryLogger()


class EpochSummaryLogger(ProgressBar):
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


class StageTimer(Callback):
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


class StopOnNonFiniteLoss(Callback):
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


class ImageLogger(Callback):
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
            log_images(trainer, _image_datamodule(trainer))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether this epoch is shown. Of several processes each has its share of the photos only."""
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        is_due = is_last or time.monotonic() - self._last >= self.every_seconds
        self._said = [] if is_due and trainer.world_size == 1 and tensorboard_loggers(trainer) else None

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
        data = _image_datamodule(trainer)
        logits, labels = (torch.cat(parts) for parts in zip(*self._said, strict=True))
        rows = [row for row in data.records if row.split == "val"][: len(labels)]
        predictions = Predictions([row.path for row in rows], labels, logits, data.classes)
        log_predictions(trainer, predictions, data.root)
        self._said, self._last = None, time.monotonic()


def _image_datamodule(trainer: Trainer) -> ImageDataModule:
    source: Any = trainer.datamodule  # type: ignore[attr-defined]
    return source.data if isinstance(source, FeatureDataModule) else source
