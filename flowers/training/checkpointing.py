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
from flowers.runtime.distributed import all_gather_object
from flowers.runtime.files import atomic_write
from flowers.runtime.run_folder import LAST_CHECKPOINT


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, then renames: Lightning's own goes through the temporary folder, perhaps another disk.

    An epoch of the head stage can take milliseconds, less than its files. There a checkpoint waits in memory, the
    frozen backbone not copied, until the last writing is `HEAD_SECONDS` ago or the stage ends. What a killed process
    had waiting, a resumed one does again, to the same bits. In that stage last.ckpt leaves the backbone out: it is in
    best.ckpt, and in the weights that a resumed run begins with.
    """

    HEAD_SECONDS = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[Path, dict[str, Any]] = {}
        self._written = time.monotonic()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves `checkpoint` at `path`, whole or not at all, now or in a while."""
        if checkpoint["stage"] != "head":
            self._waiting.pop(Path(path), None)
            _write_checkpoint(checkpoint, Path(path))
            return
        shared = {name: checkpoint[name] for name in ("hyper_parameters",) if name in checkpoint}
        weights = {
            name: tensor if name.startswith("backbone.") else tensor.clone()
            for name, tensor in checkpoint["state_dict"].items()
            if Path(path).name != Path(LAST_CHECKPOINT).name or not name.startswith("backbone.")
        }
        rest = {name: value for name, value in checkpoint.items() if name not in {"state_dict", *shared}}
        self._waiting[Path(path)] = {"state_dict": weights, **shared, **copy.deepcopy(rest)}
        # last.ckpt names the best score so far: it is written after best.ckpt, and both at once.
        if Path(path).name == Path(LAST_CHECKPOINT).name and time.monotonic() - self._written >= self.HEAD_SECONDS:
            self.teardown()

    def teardown(self) -> None:
        """Writes what waits. Lightning calls it at the end of each stage, also of an interrupted one."""
        while self._waiting:
            path = next(iter(sorted(self._waiting)))
            _write_checkpoint(self._waiting[path], path)
            del self._waiting[path]
        self._written = time.monotonic()


def _write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    with atomic_write(path) as beside:
        torch.save(checkpoint, beside)


class RelocatableModelCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets the best score so far where the run's folder has been moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the paths in it for those in this run's folder."""
        old, new = str(state_dict["dirpath"]), str(self.dirpath)
        moved = {
            name: value.replace(old, new, 1) if isinstance(value, str) and value.startswith(old) else value
            for name, value in state_dict.items()
        }
        best = {path.replace(old, new, 1): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(moved | {"best_k_models": best})


class MidEpochCheckpoint(RelocatableModelCheckpoint):
    """Saves inside an epoch, which takes days where photos are very many, and has a resumed run go on inside of it.

    That one draws what would have been drawn, and its curves count the whole epoch. `minutes` lie between two savings.
    """

    state_key = "MidEpochCheckpoint"  # whatever its interval: that may change

    def __init__(self, minutes: float, **settings: Any) -> None:
        super().__init__(train_time_interval=timedelta(minutes=minutes), **settings)
        self._is_inside = False
        self._begun: dict[str, Any] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where it is time, but not between two gradients of a sum, nor where `last` is about to."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if isinstance(trainer.train_dataloader, ResumableDataLoader) and is_step and not trainer.is_last_batch:
            self._is_inside = True
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._is_inside = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the generators and of the epoch's metrics."""
        if self._is_inside:
            checkpoint["begun"] = {
                "steps": epoch_steps_key(trainer.datamodule, trainer.world_size),  # type: ignore[attr-defined]
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
        """Keeps it until the epoch goes on."""
        self._begun = checkpoint.get("begun")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores it."""
        super().on_train_start(trainer, pl_module)
        if self._begun is None:
            return
        if len(self._begun["random"]) == trainer.world_size:
            on_cpu, *on_gpus = self._begun["random"][trainer.global_rank]
            torch.set_rng_state(on_cpu)
            if torch.cuda.device_count() == len(on_gpus):
                torch.cuda.set_rng_state_all(on_gpus)
        for name, metric in _training_metrics(pl_module) if trainer.is_global_zero else ():  # sums, added up at the end
            for state, value in self._begun["metrics"][name].items():
                setattr(metric, state, value.to(metric.device))
        self._begun = None


def _training_metrics(model: LightningModule) -> list[tuple[str, Metric]]:
    names = ("train_loss", "train_accuracy")
    return [(name, getattr(model, name)) for name in names]


def epoch_steps_key(data: ImageDataModule, ranks: int) -> str:
    """What decides which photos an epoch's steps take, for people. Packed ones are dealt out by the shard."""
    return f"data.batch_size={data.batch_size}" + (f" and {ranks} process(es)" if data.shards else "")
