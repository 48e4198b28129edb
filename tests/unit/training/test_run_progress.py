import itertools
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowers.runtime.text import readable_duration
from flowers.training.run_progress import RunProgress, TimeLeft, epoch_line, faster_way


def test_time_left_comes_from_the_steps_until_an_epoch_has_ended():
    left = TimeLeft(epochs=10, validation_share=0.5)
    assert left.seconds() is None
    assert left.seconds(elapsed=2.0, done=0.25) == 10 * 8 * 1.5 - 2
    left.add_epoch(20.0)
    assert left.seconds() == 9 * 20
    assert left.seconds(elapsed=5.0, done=0.1) == 9 * 20 - 5
    left.add_epoch(10.0)
    assert left.seconds() == 8 * 10  # the first epoch is slower


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=20))
def test_time_left_of_equal_epochs_falls_to_nothing(spent: list[float]):
    left = TimeLeft(epochs=len(spent))
    seen = []
    for _ in spent:
        left.add_epoch(spent[0])
        seen.append(left.seconds())
    assert seen == sorted(seen, key=lambda value: -(value or 0.0))
    assert seen[-1] == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.23, "4.2 s"), (59.97, "1 min 0 s"), (725, "12 min 5 s"), (3599.6, "1 h 0 min"), (19_200, "5 h 20 min")],
)
def test_readable_duration(seconds: float, text: str):
    assert readable_duration(seconds) == text


def run(epoch: int = 20, epochs: int = 50, device: str = "cpu", seconds: Any = None) -> Any:
    metrics = {name: torch.tensor(0.51239) for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")}
    task = SimpleNamespace(stage=SimpleNamespace(name="finetune"), config={"finetune": {"epochs": 45}})
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(
        callback_metrics=metrics, current_epoch=epoch, max_epochs=epochs, lightning_module=task, strategy=strategy
    )


def test_epoch_line_fits_into_a_terminal_of_80_columns():
    line = epoch_line("finetune", run(), 12.34)
    assert line == "finetune epoch 21/50  loss 0.5124 val 0.5124  accuracy 0.5124 val 0.5124  12.3 s"
    assert len(line) <= 80
    assert len(epoch_line("finetune", run(), 4321.0)) <= 80


def test_epoch_line_without_validation():
    trainer = run()
    trainer.callback_metrics = {"train/loss": torch.tensor(2.0)}
    assert epoch_line("head", trainer, 1.0) == "head epoch 21/50  loss 2.0000  1.0 s"


def test_faster_way_names_what_the_head_took():
    assert faster_way({"head": 130.0}) == (
        "faster: experiment=head_only trains the head alone, which took 2 min 10 s in this run"
    )
    assert faster_way({}) == "faster: experiment=head_only trains the head alone"


def test_run_progress_logs_a_line_per_epoch_and_foretells_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    clock = itertools.count(0, 60)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    progress, trainer = RunProgress(), run(epoch=0, epochs=3)
    counts = SimpleNamespace(total=lambda: 4)
    trainer.datamodule = SimpleNamespace(counts=lambda split: counts)
    with caplog.at_level(logging.INFO):
        progress.on_train_start(trainer, trainer.lightning_module)
        for trainer.current_epoch in range(3):
            progress.on_train_epoch_start(trainer, trainer.lightning_module)
            progress.on_train_epoch_end(trainer, trainer.lightning_module)
    values = "loss 0.5124 val 0.5124  accuracy 0.5124 val 0.5124  60.0 s"
    assert caplog.messages == [
        f"finetune epoch 1/3  {values}",
        "finetune stage: about 3 min 0 s for 3 epochs",
        f"finetune epoch 2/3  {values}",
        f"finetune epoch 3/3  {values}",
    ]
    progress.disable()
    caplog.clear()
    progress.on_train_epoch_end(trainer, trainer.lightning_module)
    assert not caplog.messages
