"""What the project relies on inside Lightning. A failure here says what a new version has changed."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from flowers.training.callbacks import GlobalStep


class _Model(LightningModule):
    """A linear layer trained for one epoch of three batches, by automatic or by manual optimization."""

    def __init__(self, automatic: bool = True, steps: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.automatic_optimization = automatic
        self.steps = steps
        self.started: list[tuple[int, int]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.started.append((self.trainer.fit_loop.epoch_loop.batch_progress.current.ready, self.global_step))
        loss: torch.Tensor = self.layer(batch).sum()
        if not self.automatic_optimization:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizers(use_pl_optimizer=False).step()  # type: ignore[union-attr]
            self.steps += 1
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict({"metric": 0.5, "step": 41.0, "epoch": 7.0}, reduce_fx="max")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: _Model, **settings: Any) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **defaults | settings,
    )
    trainer.fit(model, DataLoader(torch.ones(3, 1)))  # type: ignore[arg-type]
    return trainer


def test_batch_progress_counts_the_batches_of_the_epoch_including_the_current_one():
    model = _Model()
    fit(model)
    assert [ready for ready, _ in model.started] == [1, 2, 3]


def test_global_step_continues_from_the_callback_in_either_kind_of_optimization():
    for automatic in (True, False):
        model = _Model(automatic, steps=100)
        trainer = fit(model, callbacks=[GlobalStep()])
        assert [step for _, step in model.started] == [100, 101, 102]
        assert trainer.global_step == 103


def test_logger_connector_takes_the_logged_step_as_the_x_axis(tmp_path: Path):
    fit(_Model(), logger=CSVLogger(tmp_path))
    header, row = next(tmp_path.rglob("metrics.csv")).read_text(encoding="utf-8").splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True)) == {"epoch": "7.0", "metric": "0.5", "step": "41"}


def test_model_checkpoint_saves_after_the_module_hook_and_full_ones_hold_optimizer_states(tmp_path: Path):
    seen: list[bool] = []

    class Recording(_Model):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            seen.append("optimizer_states" in checkpoint)
            checkpoint["last"] = json.dumps(self.trainer.callback_metrics["metric"].item())

    for weights_only in (True, False):
        callback = ModelCheckpoint(tmp_path / str(weights_only), save_weights_only=weights_only)
        fit(Recording(), callbacks=[callback], enable_checkpointing=True)
        assert torch.load(callback.best_model_path, weights_only=True)["last"] == "0.5"
    assert seen == [False, True]
