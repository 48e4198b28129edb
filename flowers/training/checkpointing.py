"""Write checkpoints atomically, at the end of an epoch and inside it."""

import copy
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torchmetrics import Metric

from flowers.data.datamodule import ImageDataModule
from flowers.data.samplers import ResumableDataLoader
from flowers.models.checkpoint_format import checkpoint_state_key
from flowers.models.classifier import read_checkpoint
from flowers.runtime.distributed import all_gather_object
from flowers.runtime.files import atomic_write
from flowers.runtime.run_folder import LAST_CHECKPOINT


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its file, then rename it, and read only checkpoints of this project.

    The default of Lightning goes through the temporary folder, which may be on another disk.

    An epoch of the head stage can take milliseconds, less than writing its checkpoints. In that stage, a checkpoint
    waits in memory until the last write is `HEAD_SECONDS` ago, or the stage ends. A resumed run repeats the epochs
    whose checkpoints a killed process had not written, and computes the same bits.
    """

    HEAD_SECONDS = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[Path, dict[str, Any]] = {}
        self._written = time.monotonic()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path` completely or not at all; in the head stage, possibly later."""
        if checkpoint["stage"] != "head":
            self._waiting.pop(Path(path), None)
            _write_checkpoint(checkpoint, Path(path))
            return
        shared = {name: checkpoint[name] for name in ("hyper_parameters",) if name in checkpoint}
        weights = {  # the frozen backbone does not change, and is not copied
            name: tensor if name.startswith("backbone.") else tensor.clone()
            for name, tensor in checkpoint["state_dict"].items()
        }
        rest = {name: value for name, value in checkpoint.items() if name not in {"state_dict", *shared}}
        self._waiting[Path(path)] = {"state_dict": weights, **shared, **copy.deepcopy(rest)}
        # last.ckpt holds the best score so far: it is written after best.ckpt, and both together.
        if Path(path).name == Path(LAST_CHECKPOINT).name and time.monotonic() - self._written >= self.HEAD_SECONDS:
            self.teardown()

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


def _write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    with atomic_write(path) as partial:
        torch.save(checkpoint, partial)


class RelocatableModelCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that keeps its best score after the run folder is moved."""

    @property
    def state_key(self) -> str:
        """Return the key of its state in a checkpoint."""
        return checkpoint_state_key(str(self.filename), self.monitor, self.mode)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with the paths of the old run folder replaced by those of this one."""
        old, new = str(state_dict["dirpath"]), str(self.dirpath)
        moved = {
            name: value.replace(old, new, 1) if isinstance(value, str) and value.startswith(old) else value
            for name, value in state_dict.items()
        }
        best = {path.replace(old, new, 1): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(moved | {"best_k_models": best})


class MidEpochCheckpoint(RelocatableModelCheckpoint):
    """Save inside an epoch, for epochs that take hours or days.

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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, but neither while gradients accumulate nor at the end of an epoch."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if isinstance(trainer.train_dataloader, ResumableDataLoader) and is_step and not trainer.is_last_batch:
            self._is_saving = True
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._is_saving = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of the random generators and of the training metrics."""
        if self._is_saving:
            checkpoint["mid_epoch"] = {
                "epoch_steps": epoch_steps_key(trainer.datamodule, trainer.world_size),  # type: ignore[attr-defined]
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
        if self._state is None:
            return
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


def _training_metrics(model: LightningModule) -> list[tuple[str, Metric]]:
    names = ("train_loss", "train_accuracy")
    return [(name, getattr(model, name)) for name in names]


def epoch_steps_key(data: ImageDataModule, world_size: int) -> str:
    """Return the settings that decide which images each step of an epoch takes, as a text for messages.

    With shards, the world size is one of them: each rank reads its own shards.
    """
    return f"data.batch_size={data.batch_size}" + (f" and {world_size} process(es)" if data.shards else "")
