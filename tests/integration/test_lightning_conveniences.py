"""Early stopping, the limit of the training time, profilers and the learning-rate finder, with resume."""

import re
import signal
from pathlib import Path
from typing import cast

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from flowers.runs.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT
from flowers.runtime.files import read_json
from flowers.settings.schema.values import parse_duration
from flowers.training.checks import check_config
from flowers.training.experiment import run_training
from flowers.training.lr_finder import find_learning_rates, smooth, suggest_rate
from flowers.training.stage_limits import StageTimer
from flowers.training.task import FineTuning
from tests.helpers import TINY, configuration, curves, weights

# An improvement by 2 is not possible: each stage ends after 1 + patience epochs.
STOPPING = ("callbacks=early_stopping", "callbacks.early_stopping.min_delta=2", "callbacks.early_stopping.patience=1")


def assert_same(found: Path, expected: Path) -> None:
    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        ours, theirs = weights(found, name), weights(expected, name)
        assert ours.keys() == theirs.keys()
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert curves(found) == curves(expected)


class StageEpochs(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append((cast(FineTuning, pl_module).stage.name, trainer.current_epoch))


def test_each_stage_stops_early_and_a_killed_run_stops_at_the_same_epoch_with_the_same_bits(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = [*TINY, *STOPPING, "head.epochs=4", "finetune.epochs=5", "scheduler=cosine", f"data.root={painted}"]
    recipe += ["+callbacks.kill._target_=tests.helpers.KillAt"]
    whole, killed, epochs = tmp_path / "whole", tmp_path / "killed", StageEpochs()
    run_training(configuration(*recipe, f"run_dir={whole}"), [epochs])
    assert epochs.seen == [("head", 0), ("head", 1), ("finetune", 2), ("finetune", 3)]

    monkeypatch.setenv("KILL_SIGNAL", str(int(signal.SIGTERM)))
    for at in ("2.1", "3.1"):  # after the head stage has ended early, and inside the epoch that will be the last
        monkeypatch.setenv("KILL_AT", at)
        resume = [f"resume={killed}"] if killed.exists() else []
        with pytest.raises(SystemExit):
            run_training(configuration(*recipe, f"run_dir={killed}", *resume))
    monkeypatch.delenv("KILL_AT")
    run_training(configuration(*recipe, f"run_dir={killed}", f"resume={killed}"))
    assert_same(killed, whole)
    again = StageEpochs()
    run_training(configuration(*recipe, f"run_dir={killed}", f"resume={killed}"), [again])
    assert again.seen == []


def test_patience_counts_on_resume_and_may_change(painted: Path, tmp_path: Path):
    recipe = [*TINY, *STOPPING, "head.epochs=0", f"data.root={painted}", f"run_dir={tmp_path}"]
    run_training(configuration(*recipe, "finetune.epochs=1"))
    epochs = StageEpochs()
    patience = ["finetune.epochs=9", f"resume={tmp_path}", "callbacks.early_stopping.patience=2"]
    run_training(configuration(*recipe, *patience), [epochs])
    assert [epoch for _, epoch in epochs.seen] == [1, 2]


def test_time_limit_counts_over_resumes_and_a_later_resume_ends_like_a_run_without_it(painted: Path, tmp_path: Path):
    class Slow(Callback):
        """Add an hour to the clock at the end of each epoch, after the limit was looked at."""

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            (timer,) = (each for each in trainer.callbacks if isinstance(each, StageTimer))  # type: ignore[attr-defined]
            timer.seconds[cast(FineTuning, pl_module).stage.name] += 3600

    recipe = [*TINY, f"data.root={painted}", "head.epochs=1", "finetune.epochs=3"]
    whole, limited = tmp_path / "whole", tmp_path / "limited"
    run_training(configuration(*recipe, f"run_dir={whole}"))
    sessions = []
    for limit in ("30m", "30m", "1h30m", "null"):
        resume = [f"resume={limited}"] if limited.exists() else []
        epochs = StageEpochs()
        settings = [f"trainer.max_time={limit}", f"run_dir={limited}", *resume]
        run_training(configuration(*recipe, *settings), [Slow(), epochs])
        sessions.append(epochs.seen)
    assert sessions == [[("head", 0)], [], [("finetune", 1), ("finetune", 2)], [("finetune", 3)]]
    assert_same(limited, whole)


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule will be overridden")  # of a few steps
@pytest.mark.parametrize(
    "profiler", ["simple", *(pytest.param(name, marks=pytest.mark.faults) for name in ("advanced", "pytorch"))]
)
def test_profiler_writes_a_table_for_each_stage_and_changes_no_bit(
    profiler: str, painted: Path, tiny: Path, tmp_path: Path
):
    recipe = [*TINY, f"data.root={painted}", "data.test_fraction=0.1", f"trainer.profiler={profiler}"]
    run_training(configuration(*recipe, f"run_dir={tmp_path}"))
    for stage in ("head", "finetune"):
        table = (tmp_path / "profile" / f"fit-{stage}.txt").read_text(encoding="utf-8")
        # A batch of the head stage holds many steps.
        row = "run_training_batch" if stage == "head" else "optimizer_step"
        assert ("aten::" if profiler == "pytorch" else row) in table  # pytorch: its 20 longest rows
    assert_same(tmp_path, tiny)


@pytest.mark.slow
def test_learning_rates_are_found_for_both_stages_and_the_folder_can_hold_a_run_afterwards(
    painted: Path, tmp_path: Path
):
    recipe = [*TINY, f"data.root={painted}", f"run_dir={tmp_path}", "head.epochs=1", "finetune.epochs=1"]
    found = find_learning_rates(configuration(*recipe, "find_lr=true"))
    assert {path.name for path in tmp_path.iterdir()} == {"find_lr.png", "find_lr.json"}
    figures = read_json(tmp_path / "find_lr.json")
    assert figures.keys() == found.keys() == {"optimizer.lr", "finetune.backbone_lr"}
    for name, test in figures.items():
        assert test["rates"][0] == 1e-6
        assert len(test["rates"]) == len(test["losses"]) > 50
        assert test["rates"][0] < found[name] < test["rates"][-1]
    assert found == find_learning_rates(configuration(*recipe, "find_lr=true"))
    run_training(configuration(*recipe))
    with pytest.raises(ValueError, match="already holds a run"):
        find_learning_rates(configuration(*recipe, "find_lr=true"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["resume=a"], "find_lr=true with resume=a: rates are found before a run"),
        (["trainer.devices=2"], "find_lr=true with trainer.devices=2 trainer.strategy=auto: expected one device"),
        (["trainer=fsdp", "trainer.devices=1"], "expected one device, trainer.devices=1 trainer.strategy=auto"),
    ],
)
def test_find_lr_refuses_what_it_cannot_do(settings: list[str], expected: str):
    cfg = configuration(*TINY, "data.root=x", "run_dir=x", "find_lr=true", *settings)
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_config(cfg)


def test_suggested_rate_is_a_tenth_of_the_highest_whose_loss_is_close_to_the_lowest():
    assert suggest_rate("head", [0.1, 1.0, 10.0, 99.0], [3.0, 2.0, 2.05, 9.0]) == pytest.approx(1.0)
    assert suggest_rate("head", [0.1, 1.0, 10.0], [3.0, 2.0, 9.0]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="the loss of the head stage does not fall at any rate"):
        suggest_rate("head", [0.1, 1.0], [1.0, 2.0])
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("1h30m", 5400), ("2d", 172800), ("00:01:30:05", 5405)]
)
def test_duration_is_read_in_both_forms(text: str, seconds: int):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "90", "1.5h", "1m1h", "01:30:00", "-1h"])
def test_other_durations_are_refused(text: str):
    with pytest.raises(ValueError, match=r"trainer\.max_time=.*: expected a duration above 0 such as 45m, 1h30m or"):
        configuration(*TINY, "data.root=x", "run_dir=x", f"trainer.max_time='{text}'")
