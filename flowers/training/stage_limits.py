"""Lightning callbacks that measure stages, and end them: after a time, or without improvement."""

import logging
import time
from collections import defaultdict
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from flowers.training.task import FineTuning

log = logging.getLogger(__name__)


class StageTimer(Callback):
    """Measure each stage over all sessions of a run, and log the training images per second of each epoch.

    With `max_seconds`, training ends after the epoch in which the stages of all sessions have taken as long. Timer of
    Lightning starts anew in each stage, does not count the features, and can stop inside an epoch.

    Args:
        max_seconds: The limit; None for no limit.

    Attributes:
        seconds: Seconds of each stage, including features, validation and checkpoints.
        training: Seconds of the training steps of each stage.
        images: Images that these steps trained on.
    """

    state_key = "StageTimer"

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds
        self.seconds: dict[str, float] = defaultdict(float)
        self.training: dict[str, float] = defaultdict(float)
        self.images: dict[str, int] = defaultdict(int)
        self._stage = ""
        self._last = self._epoch_start = 0.0
        self._epoch_images = 0
        self._rate = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock of the stage."""
        self._stage, self._last = cast(FineTuning, pl_module).stage.name, time.perf_counter()
        self._epoch_start, self._epoch_images = self._last, 0  # an epoch that is resumed inside has no start hook

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop the clock of the stage."""
        self._add_elapsed()

    @property
    def is_over(self) -> bool:
        """Whether the stages of all sessions have taken `max_seconds`."""
        return self.max_seconds is not None and sum(self.seconds.values()) >= self.max_seconds

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no epoch if the time was over when the checkpoint was written."""
        self._stop_in_time(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_start, self._epoch_images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of the batch, and stop the clock of the epoch after the last batch."""
        self._epoch_images += len(batch[1])
        if trainer.is_last_batch:
            seconds = time.perf_counter() - self._epoch_start
            self.images[self._stage] += self._epoch_images * trainer.world_size
            self.training[self._stage] += seconds
            self._rate = self._epoch_images / seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the images per second of the epoch, without validation, and end the stage if the time is over."""
        pl_module.log("photos_per_second", self._rate, sync_dist=True, reduce_fx="sum")
        self._add_elapsed()
        self._stop_in_time(trainer)

    def _stop_in_time(self, trainer: Trainer) -> None:
        if self.max_seconds is not None:
            trainer.should_stop |= bool(trainer.strategy.broadcast(self.is_over))

    def _add_elapsed(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._last
        self._last = now

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements so far."""
        self._add_elapsed()
        return {"seconds": dict(self.seconds), "training": dict(self.training), "photos": dict(self.images)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements of earlier sessions."""
        self.seconds.update(state_dict["seconds"])
        self.training.update(state_dict["training"])
        self.images.update(state_dict["photos"])


class StageEarlyStopping(EarlyStopping):
    """End a stage once `monitor` has not improved for `patience` epochs. The next stage follows, and counts anew.

    A checkpoint says which stages have ended, so that a resumed run does not train them further.

    Args:
        monitor: "val/accuracy", whose highest value is the best, or "val/loss".
        patience: Epochs without improvement after which the stage ends.
        min_delta: Smallest change that counts as an improvement.
    """

    def __init__(self, monitor: str = "val/accuracy", patience: int = 5, min_delta: float = 0.0) -> None:
        mode = "min" if monitor.endswith("loss") else "max"
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count from the start of the stage; a checkpoint inside of it is loaded later."""
        self.wait_count = 0
        self.best_score = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts, but not the patience, which may change on resume."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch. Validation has run by then, and checkpoints are written later."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.wait_count < self.patience:
            return
        task = cast(FineTuning, pl_module)
        done, planned = task.end_stage(), task.stage.epochs
        if trainer.is_global_zero and done < planned:
            best, epochs = float(self.best_score), "epoch" if self.patience == 1 else f"{self.patience} epochs"
            log.info(
                "%s stage: ends after %d of %d epochs: %s, at best %.4f, has not improved for %s",
                *(task.stage.name, done, planned, self.monitor, best, epochs),
            )
