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


def test_checkpoint_that_does_not_fit_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    checkpoint = {"stage": "finetune", "state_dict": {"weight": torch.zeros(10**6)}, "optimizer": [torch.zeros(10**6)]}
    with pytest.raises(
        DiskFullError, match=r"disk full: cannot write .*last\.ckpt \(it needs 8\.0 MB, 1\.0 MB are free\)"
    ):
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())
