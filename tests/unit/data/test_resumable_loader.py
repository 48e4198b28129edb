from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from flowers.data.samplers import EpochSampler, ResumableDataLoader


class Numbers(Dataset[Tensor]):
    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor([float(key[0])])


class Reader(LightningModule):
    """Notes epoch and batch, and saves a checkpoint after the one named."""

    def __init__(self, save: tuple[int, int] | None = None, path: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[float]]] = []
        self.save, self.path = save, path

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.flatten().tolist()))
        return self.weight * batch.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == self.save:
            self.trainer.save_checkpoint(self.path)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches  # asks for the loader, as the project's model does
        return torch.optim.SGD(self.parameters(), lr=0.1)


def read(workers: int, checkpoint: Path | None = None, **save: Any) -> list[tuple[int, list[float]]]:
    trainer = Trainer(accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    loader = ResumableDataLoader(
        Numbers(),
        BatchSampler(EpochSampler(8, seed=0), 2, drop_last=False),  # type: ignore[arg-type]
        lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        num_workers=workers,
    )
    reader = Reader(**save)
    trainer.fit(reader, loader, ckpt_path=checkpoint, weights_only=True)
    return reader.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_after_the_last_batch_seen_whatever_the_workers(tmp_path: Path, workers: int):
    whole = read(workers, save=(1, 1), path=tmp_path / "inside.ckpt")
    epochs = [[number for of, batch in whole if of == epoch for number in batch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert read(workers, tmp_path / "inside.ckpt") == whole[6:]


def test_a_run_that_is_resumed_between_epochs_has_the_order_of_the_next_one(tmp_path: Path):
    whole = read(2, save=(0, 3), path=tmp_path / "end.ckpt")
    assert read(2, tmp_path / "end.ckpt") == whole[4:]
