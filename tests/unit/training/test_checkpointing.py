from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowers.runtime.files import DiskFullError
from flowers.training.checkpointing import AtomicCheckpointIO, RelocatableModelCheckpoint


def offer(callback: RelocatableModelCheckpoint, accuracy: float, loss: float) -> bool:
    """Offer an epoch to the callback, as Lightning does; return whether it is the best so far."""
    strategy = SimpleNamespace(reduce_boolean_decision=bool)
    trainer: Any = SimpleNamespace(strategy=strategy, callback_metrics={"val/loss": torch.tensor(loss)})
    current = torch.tensor(accuracy)
    is_best = bool(callback.check_monitor_top_k(trainer, current))
    if is_best:
        callback.best_k_models = {"best.ckpt": current}
        callback.kth_best_model_path, callback.best_model_score = "best.ckpt", current
    return is_best


def test_best_checkpoint_of_a_tie_is_the_epoch_with_the_lower_loss(tmp_path: Path):
    best = RelocatableModelCheckpoint(dirpath=tmp_path, monitor="val/accuracy", mode="max")
    epochs = [(0.5, 1.0), (0.8, 0.9), (0.8, 0.95), (0.8, 0.7), (0.8, 0.7), (0.7, 0.1), (0.9, 2.0)]
    assert [offer(best, *epoch) for epoch in epochs] == [True, True, False, True, False, False, True]
    assert best.state_dict()["best_loss"] == pytest.approx(2.0)


def stage_checkpoint(stage: str, value: float) -> dict[str, Any]:
    return {"stage": stage, "state_dict": {"head": torch.full((2,), value)}, "optimizer": [torch.full((2,), value)]}


@pytest.mark.parametrize("stage", ["head", "finetune"])
def test_checkpoints_of_short_epochs_wait_and_are_written_as_they_were(tmp_path: Path, stage: str):
    io, best, last = AtomicCheckpointIO(), tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    checkpoint = stage_checkpoint(stage, 1.0)
    for path in (best, last):
        io.save_checkpoint(checkpoint, path)
    checkpoint["state_dict"]["head"].zero_(), checkpoint["optimizer"][0].zero_()  # training goes on
    assert not list(tmp_path.iterdir())
    io.teardown()
    for path in (best, last):
        assert torch.load(path)["state_dict"]["head"].tolist() == [1.0, 1.0]
        assert torch.load(path)["optimizer"][0].tolist() == [1.0, 1.0]


def test_checkpoints_are_written_if_the_last_write_is_long_ago_or_inside_an_epoch(tmp_path: Path):
    io, best, last = AtomicCheckpointIO(), tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    io.save_checkpoint(stage_checkpoint("finetune", 1.0), best)
    io.save_checkpoint(stage_checkpoint("finetune", 2.0) | {"mid_epoch": {}}, last)
    assert torch.load(best)["state_dict"]["head"].tolist() == [1.0, 1.0]  # the best so far is written with it
    assert torch.load(last)["state_dict"]["head"].tolist() == [2.0, 2.0]
    io.WAIT_SECONDS = 0.0
    for path in (best, last):
        io.save_checkpoint(stage_checkpoint("finetune", 3.0), path)
        assert torch.load(path)["state_dict"]["head"].tolist() == [3.0, 3.0]


def test_checkpoint_is_written_at_once_without_memory_to_wait_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("copy.deepcopy", fail)
    AtomicCheckpointIO().save_checkpoint(stage_checkpoint("finetune", 1.0), tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").exists()


def test_checkpoint_that_does_not_fit_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    checkpoint = {"stage": "finetune", "state_dict": {"weight": torch.zeros(10**6)}, "optimizer": [torch.zeros(10**6)]}
    with pytest.raises(
        DiskFullError, match=r"disk full: cannot write .*last\.ckpt \(it needs 8\.0 MB, 1\.0 MB are free\)"
    ):
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())
