"""Write checkpoints atomically, at the end of an epoch and inside it."""

import copy
import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torchmetrics import Metric

from flowers.data.datamodule import ImageDataModule
from flowers.data.samplers import ResumableDataLoader
from flowers.features.datamodule import FeatureDataModule
from flowers.models.checkpoint_format import checkpoint_state_key, read_checkpoint
from flowers.runs.run_folder import LAST_CHECKPOINT
from flowers.runtime.distributed import all_gather_object
from flowers.runtime.files import atomic_write, check_free_space
from flowers.runtime.interrupt import STOP, install_stop_signals

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its file, then rename it, and read only checkpoints of this project.

    The default of Lightning goes through the temporary folder, which may be on another disk.

    A short epoch can take less time than writing its checkpoints. A checkpoint waits in memory until the last write
    was `WAIT_SECONDS` ago, or the stage ends. If the process is killed before, a resumed run trains these epochs again,
    to the same bits.
    """

    WAIT_SECONDS = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[Path, dict[str, Any]] = {}
        self._written = time.monotonic()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path` completely or not at all, possibly later."""
        path = Path(path)
        is_last = path.name == Path(LAST_CHECKPOINT).name
        is_due = "mid_epoch" in checkpoint or time.monotonic() - self._written >= self.WAIT_SECONDS
        self._waiting.pop(path, None)
        if not is_due:
            check_free_space(path, _tensor_bytes(checkpoint))  # a full disk stops the run now, not at the write
            try:
                self._waiting[path] = _copy_checkpoint(checkpoint)
                return
            except (torch.OutOfMemoryError, MemoryError):  # no room for the copy: it is written now
                pass
        if is_last:  # it holds the best score so far, whose checkpoint is written before it
            self.teardown()
        _write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the checkpoint at `path`, checked and in today's format."""
        return read_checkpoint(path, mmap=False)  # it may be overwritten while the optimizer uses its tensors

    def teardown(self) -> None:
        """Write the waiting checkpoints. Lightning calls this at the end of each stage, also if it is interrupted."""
        while self._waiting:
            path = next(iter(sorted(self._waiting)))
            _write_checkpoint(self._waiting[path], path)
            del self._waiting[path]
        self._written = time.monotonic()


def _copy_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that later steps do not change. It shares the weights of a frozen backbone, and the settings."""
    is_frozen = checkpoint["stage"] == "head"
    weights = {
        name: tensor if is_frozen and name.startswith("backbone.") else tensor.clone()
        for name, tensor in checkpoint["state_dict"].items()
    }
    shared = {name: checkpoint[name] for name in ("hyper_parameters",) if name in checkpoint}
    rest = {name: value for name, value in checkpoint.items() if name not in {"state_dict", *shared}}
    return {"state_dict": weights, **shared, **_copied(rest)}


def _copied(value: Any) -> Any:
    """Return a copy of plain data with its tensors. It takes a fraction of the time of `copy.deepcopy`."""
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    return copy.deepcopy(value)


def _write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    with atomic_write(path, _tensor_bytes(checkpoint)) as partial, partial.open("wb") as file:
        torch.save(checkpoint, file)  # into a Python file, whose errors say that a disk is full


def _tensor_bytes(value: Any) -> int:
    """Return the bytes of the tensors in nested dicts and lists, without what tensors share."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_tensor_bytes, items))


class RelocatableModelCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that keeps its best score after the run folder is moved.

    Of several epochs with the same best score, it keeps the one with the lowest validation loss. If the best checkpoint
    is lost, a resumed run chooses the best of the epochs that it still trains.
    """

    best_loss = float("inf")  # not in a constructor, which would hide the arguments of ModelCheckpoint

    @property
    def state_key(self) -> str:
        """Return the key of its state in a checkpoint."""
        return checkpoint_state_key(str(self.filename), self.monitor, self.mode)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> Any:
        """Return whether this epoch is better than the best so far, or as good with a lower loss."""
        loss = float(trainer.callback_metrics.get("val/loss", float("inf")))
        is_best = bool(super().check_monitor_top_k(trainer, current))
        is_tie = self.save_top_k == 1 and current is not None and self.best_model_score == current
        if is_best or (is_tie and loss < self.best_loss):
            self.best_loss = loss
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the loss of the best epoch."""
        return super().state_dict() | {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with the paths of the old run folder replaced by those of this one."""
        old, new = str(state_dict["dirpath"]), str(self.dirpath)
        moved = {
            name: value.replace(old, new, 1) if isinstance(value, str) and value.startswith(old) else value
            for name, value in state_dict.items()
        }
        best = {path.replace(old, new, 1): score for path, score in state_dict["best_k_models"].items()}
        if self.monitor and not all(Path(path).is_file() for path in best):
            log.warning("%s is missing: the best of the remaining epochs replaces it", ", ".join(best))
            return
        self.best_loss = state_dict.get("best_loss", float("inf"))
        super().load_state_dict(moved | {"best_k_models": best})


class MidEpochCheckpoint(RelocatableModelCheckpoint):
    """Save inside an epoch: from time to time, and when a signal asks the run to stop.

    A run that is resumed inside an epoch makes the random draws of an uninterrupted one, and its curves count the whole
    epoch.

    Args:
        minutes: Time between two saves.
        settings: Further arguments of ModelCheckpoint.
    """

    state_key = "MidEpochCheckpoint"  # without the interval, which may change on resume

    def __init__(self, minutes: float, **settings: Any) -> None:
        super().__init__(train_time_interval=timedelta(minutes=minutes), **settings)
        self._is_saving = False
        self._state: dict[str, Any] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have a signal wait for the next step, or for the end of the validation that follows the last step."""
        install_stop_signals()
        STOP.waits = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time or a signal asks to stop, but neither while gradients accumulate nor after the last step.

        Raises:
            KeyboardInterrupt: The run is to stop, and is saved.
        """
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not isinstance(trainer.train_dataloader, ResumableDataLoader) or not is_step or trainer.is_last_batch:
            return
        is_stopped = self._is_stopped(trainer)
        self._is_saving = True
        if is_stopped:
            trainer.save_checkpoint(Path(str(self.dirpath), f"{self.filename}.ckpt"))
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._is_saving = False
        if is_stopped:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal asks to: the other callbacks have saved the epoch.

        Raises:
            KeyboardInterrupt: The run is to stop.
        """
        STOP.waits = False
        if self._is_stopped(trainer):
            raise KeyboardInterrupt

    def _is_stopped(self, trainer: Trainer) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(STOP.is_set, all=False))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of the random generators and of the training metrics."""
        if self._is_saving:
            checkpoint["mid_epoch"] = {
                "epoch_steps": epoch_steps_key(_images(trainer), trainer.world_size),
                "random": all_gather_object([torch.get_rng_state(), *torch.cuda.get_rng_state_all()]),
                "metrics": {
                    name: {
                        state: trainer.strategy.reduce(torch.as_tensor(value).clone(), reduce_op="sum")
                        for state, value in metric.metric_state.items()
                    }
                    for name, metric in _training_metrics(pl_module)
                },
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember these states until training starts."""
        self._state = checkpoint.get("mid_epoch")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore these states."""
        super().on_train_start(trainer, pl_module)
        install_stop_signals()
        if self._state is None:
            return
        STOP.waits = True  # an epoch that is resumed inside has no start hook
        if len(self._state["random"]) == trainer.world_size:
            on_cpu, *on_gpus = self._state["random"][trainer.global_rank]
            torch.set_rng_state(on_cpu)
            if torch.cuda.device_count() == len(on_gpus):
                torch.cuda.set_rng_state_all(on_gpus)
        # The states are sums over the ranks, which are added up again at the end of the epoch.
        for name, metric in _training_metrics(pl_module) if trainer.is_global_zero else ():
            for state, value in self._state["metrics"][name].items():
                setattr(metric, state, value.to(metric.device))
        self._state = None


def _images(trainer: Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data.data if isinstance(data, FeatureDataModule) else data


def _training_metrics(model: LightningModule) -> list[tuple[str, Metric]]:
    names = ("train_loss", "train_accuracy")
    return [(name, getattr(model, name)) for name in names]


def epoch_steps_key(data: ImageDataModule, world_size: int) -> str:
    """Return the settings that decide which images each step of an epoch takes, as a text for messages.

    With a sequential source, the world size is one of them: each rank reads its own shards.
    """
    balance = " and data.balance=sampler" if data.balance == "sampler" else ""
    return f"data.batch_size={data.batch_size}{balance}" + (
        f" and {world_size} process(es)" if data.source.is_sequential else ""
    )
