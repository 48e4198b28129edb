"""What a run shows while it trains: a line per epoch, the time that is left, and on a terminal a bar."""

import logging
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from flowers.runtime.text import readable_duration
from flowers.training.callbacks import image_datamodule
from flowers.training.stage_limits import StageTimer
from flowers.training.task import FineTuning

log = logging.getLogger(__name__)

_SHORT_STAGE = 10.0  # seconds, of which no line is needed
_LONG_RUN = 30 * 60  # seconds on a CPU above which a faster way is named
_FASTER = "experiment=head_only"  # one pass over the photos
_FASTER_KEYS = ("experiment=", "head.epochs=", "finetune.epochs=", "optimizer.lr=", "hydra.run.dir=")  # it has its own
_MEASURED_STEPS, _MEASURED_SECONDS = 3, 1.0  # of a stage, before its time is told
_FORWARD_SHARE = 1 / 3  # of a training step: the backward pass computes two products for each one of the forward pass
_RECENT_EPOCHS = 5  # whose mean time foretells the others: images may change their size during a stage
_BAR_SECONDS = 0.25  # between two updates of the bar


@dataclass
class TimeLeft:
    """Foretell how long the rest of a stage takes.

    Args:
        epochs: The epochs that are left at the start of the session.
        validation_share: The time of a validation over that of the training steps of its epoch. It counts until an
            epoch has ended.
    """

    epochs: int
    validation_share: float = 0.0
    _seconds: list[float] = field(default_factory=list)

    def add_epoch(self, seconds: float) -> None:
        """Note the time of an epoch, with its validation."""
        self._seconds.append(seconds)

    def seconds(self, elapsed: float = 0.0, done: float = 0.0) -> float | None:
        """Return the seconds that are left of the stage; None before anything is measured.

        Args:
            elapsed: Seconds of the current epoch so far.
            done: The share of its steps that they took, from 0 to 1.
        """
        if recent := self._seconds[1:][-_RECENT_EPOCHS:] or self._seconds:  # the first one is slower: it warms up
            epoch = sum(recent) / len(recent)
        elif done:
            epoch = elapsed / done * (1 + self.validation_share)
        else:
            return None
        return max(epoch * (self.epochs - len(self._seconds)) - elapsed, 0.0)


class RunProgress(ProgressBar):
    """Log a line per epoch, and how long the run takes; on a terminal, show a bar below the lines.

    The time of a stage is measured in its own steps: the head stage does not know that of the fine-tune stage.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled, self._is_told = True, False
        self._exit = ExitStack()
        self._bar: Progress | None = None
        self._left, self._stage_start, self._epoch_start, self._bar_time = TimeLeft(0), 0.0, 0.0, 0.0
        self._first_batch: int | None = None

    def enable(self) -> None:
        """Show progress."""
        self._is_enabled = True

    def disable(self) -> None:
        """Show nothing. Lightning calls this on all ranks but the first."""
        self._is_enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure the stage."""
        train, val = (image_datamodule(trainer).counts(split).total() for split in ("train", "val"))
        self._left = TimeLeft((trainer.max_epochs or 0) - trainer.current_epoch, val / train * _FORWARD_SHARE)
        self._is_told, self._stage_start = False, time.perf_counter()
        self._epoch_start, self._first_batch = self._stage_start, None  # an epoch resumed inside has no start hook

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_start, self._first_batch = time.perf_counter(), None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the bar. Features, which have a bar of their own, are computed by now."""
        if self._first_batch is None:
            self._first_batch = batch_idx
        if self._is_enabled and self._bar is None and sys.stdout.isatty():
            self._bar = self._exit.enter_context(_terminal_bar())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, and say once in a stage how long it takes."""
        now = time.perf_counter()
        steps, elapsed = batch_idx + 1 - (self._first_batch or 0), now - self._epoch_start
        is_told_now = not self._is_told and steps >= _MEASURED_STEPS and elapsed >= _MEASURED_SECONDS
        if self._is_enabled and (is_told_now or (self._bar and now - self._bar_time >= _BAR_SECONDS)):
            left = self._left.seconds(elapsed, steps / float(trainer.num_training_batches))
            if is_told_now:
                self._tell(trainer, left, elapsed)
            self._show(trainer, left)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the line of the epoch. Validation has run by then."""
        seconds = time.perf_counter() - self._epoch_start
        self._left.add_epoch(seconds)
        if self._is_enabled:
            log.info(epoch_line(cast(FineTuning, pl_module).stage.name, trainer, seconds))
            left = self._left.seconds()
            if not self._is_told:
                self._tell(trainer, left, seconds)
            self._show(trainer, left)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._close()

    def _close(self) -> None:
        self._exit.close()
        self._bar = None

    def _tell(self, trainer: Trainer, left: float | None, elapsed: float) -> None:
        """Log how long the stage takes if that is long, and on a slow CPU a faster way."""
        self._is_told = True
        if left is None or left < _SHORT_STAGE:
            return
        task = cast(FineTuning, trainer.lightning_module)
        log.info("%s stage: about %s for %d epochs", task.stage.name, readable_duration(left + elapsed),
                 self._left.epochs)  # fmt: skip
        if left > _LONG_RUN and trainer.strategy.root_device.type == "cpu":
            timer = next(each for each in trainer.callbacks if isinstance(each, StageTimer))  # type: ignore[attr-defined]
            if faster := faster_way(timer.seconds):
                log.info(faster)

    def _show(self, trainer: Trainer, left: float | None) -> None:
        if self._bar is None or left is None:
            return
        task, self._bar_time = cast(FineTuning, trainer.lightning_module), time.perf_counter()
        spent = self._bar_time - self._stage_start
        more = ", then the fine-tune stage" if task.stage.name == "head" and _finetune_epochs(task) else ""
        self._bar.update(
            self._bar.task_ids[0],
            description=f"{task.stage.name} {trainer.current_epoch + 1}/{trainer.max_epochs}",
            completed=spent / (spent + left),
            left=f"{readable_duration(left)} left{more}",
        )


def _finetune_epochs(task: FineTuning) -> int:
    return int((task.config or {}).get("finetune", {}).get("epochs", 0))


@contextmanager
def _terminal_bar() -> Iterator[Progress]:
    """Show a bar below what is logged and printed."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    bar = Progress(*columns, console=Console(file=sys.stdout), transient=True, refresh_per_second=1 / _BAR_SECONDS)
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    shown = {each: each.stream for each in handlers if each.stream in (sys.stdout, sys.stderr)}
    bar.add_task("", total=1, left="")
    with bar:
        for handler in shown:
            handler.setStream(sys.stdout)  # Rich prints above the bar what reaches its own stream
        try:
            yield bar
        finally:
            for handler, stream in shown.items():
                handler.setStream(stream)


def faster_way(seconds: Mapping[str, float]) -> str:
    """Return the line that names the faster way: the head alone.

    Args:
        seconds: Seconds of each stage so far. The head stage of this run took what the faster way takes.
    """
    spent = f", which took {readable_duration(seconds['head'])} in this run" if seconds.get("head") else ""
    line = f"faster: {_FASTER} trains the head alone{spent}"
    if HydraConfig.initialized() and str(HydraConfig.get().mode) == "RunMode.RUN":
        overrides = [each for each in HydraConfig.get().overrides.task if not each.startswith(_FASTER_KEYS)]
        line += f": {shlex.join(['flowers', 'train', _FASTER, *overrides])}"
    return line


def epoch_line(stage: str, trainer: Trainer, seconds: float) -> str:
    """Return the line of an epoch: at most 80 characters, which a terminal does not break."""
    metrics: Mapping[str, Any] = trainer.callback_metrics
    values = [
        f"{metric} {metrics[f'train/{metric}']:.4f}"
        + (f" val {metrics[f'val/{metric}']:.4f}" if f"val/{metric}" in metrics else "")
        for metric in ("loss", "accuracy")
        if f"train/{metric}" in metrics
    ]
    epoch = f"{stage} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
    return "  ".join([epoch, *values, f"{seconds:.{1 if seconds < 99.95 else 0}f} s"])
