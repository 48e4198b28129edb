import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peer_table import SCRIPTS, Entry, epochs_within, fit_to_budget, peer_rows, run_measured
from flowers.runs.predictions import Predictions


def predictions(wrong: int, order: list[int]) -> Predictions:
    logits = torch.tensor([[0.0, 1.0]] * wrong + [[1.0, 0.0]] * (10 - wrong), dtype=torch.float64)
    paths = [str(number) for number in range(10)]
    return Predictions([paths[each] for each in order], torch.zeros(10, dtype=torch.int64), logits[order], ["a", "b"])


def test_peer_rows_compare_the_same_images_in_any_order():
    forward, backward = list(range(10)), list(range(9, -1, -1))
    ours = Entry("flowers", 4, [3.0, 1.0, 2.0], 10, {"val": predictions(0, forward), "test": predictions(1, forward)})
    peer = Entry(
        "timm", 4, [5.0], 20, {"val": predictions(5, backward), "test": predictions(9, backward)}, "timm 1", "SGD"
    )
    lost = Entry("fastai", 4, problem="No module named 'fastai'")
    rows = {row["library"]: row for row in peer_rows([ours, peer, lost])}
    assert rows["flowers"]["seconds"] == 2.0
    assert rows["timm"]["difference"] == pytest.approx(0.8)
    assert rows["timm"]["p"] == pytest.approx(2 / 2**8)
    assert rows["timm"]["val"]["accuracy"] == 0.5
    assert rows["fastai"] == {"library": "fastai", "epochs": 4, "problem": "No module named 'fastai'"}


def test_peer_rows_show_test_time_augmentation_after_its_peer():
    order = list(range(10))
    averaged = Entry("fastai, TTA", 4, [6.0], predictions={"val": predictions(1, order)})
    ours = Entry("flowers", 4, [1.0], predictions={"val": predictions(0, order)})
    peer = Entry("fastai", 4, [5.0], predictions={"val": predictions(2, order)}, tta=averaged)
    rows = peer_rows([ours, peer])
    assert [(row["library"], row["seconds"]) for row in rows] == [("flowers", 1), ("fastai", 5), ("fastai, TTA", 6)]
    assert rows[2]["difference"] == pytest.approx(0.1)
    peer.problem = "killed"
    assert [row["library"] for row in peer_rows([ours, peer])] == ["flowers", "fastai"]


def test_epochs_within_takes_the_line_through_two_runs():
    trials = {1: 20.0, 3: 40.0}  # 10 s to start, 10 s for an epoch
    assert [epochs_within(budget, trials) for budget in (5, 20, 29, 30, 40, 109, 110)] == [1, 1, 1, 2, 3, 9, 10]
    assert epochs_within(30, {1: 10.0, 3: 9.0}) == 10  # noise


@pytest.mark.parametrize("budget", [15, 20, 30, 45, 100, 400])
def test_fit_to_budget_takes_the_most_epochs_that_fit(budget: int):
    runs = []

    def train(entry: Entry) -> None:
        runs.append(entry.epochs)
        entry.seconds.append(10 + 10 * entry.epochs)

    entry = Entry("timm", 0, budget=budget)
    fit_to_budget(entry, train)
    assert entry.epochs == max(1, (budget - 10) // 10)
    assert not entry.seconds  # trials do not count
    assert len(runs) == len(set(runs)) <= 3


def test_fit_to_budget_takes_fewer_epochs_when_later_ones_cost_more():
    entry = Entry("keras", 0, budget=100)
    fit_to_budget(entry, lambda each: each.seconds.append(10 + 2.0 * each.epochs**2))
    assert 10 + 2 * entry.epochs**2 <= 100
    assert entry.epochs >= 4


def test_fit_to_budget_keeps_the_reason_of_a_failure():
    def train(entry: Entry) -> None:
        entry.problem = "No module named 'keras'"

    entry = Entry("keras", 0, budget=100)
    fit_to_budget(entry, train)
    assert peer_rows([entry])[0]["problem"] == "No module named 'keras'"


def test_peer_rows_compare_the_same_budget_whatever_the_epochs():
    order = list(range(10))
    ours = Entry("flowers", 7, [1.0], predictions={"val": predictions(0, order)}, budget=60)
    peer = Entry("timm", 3, [1.0], predictions={"val": predictions(2, order)}, budget=60)
    rows = peer_rows([ours, peer])
    assert rows[1]["difference"] == pytest.approx(0.2)
    assert [(row["epochs"], row["budget"]) for row in rows] == [(7, 60), (3, 60)]


def test_run_measured_returns_code_seconds_memory_and_output(tmp_path: Path):
    command = [sys.executable, "-c", "print('one'); print(); raise SystemExit('two')"]
    code, seconds, peak, lines = run_measured(command, tmp_path)
    assert code == 1
    assert 0 < seconds < 60
    assert 10**6 < peak < 10**8  # not that of this process, which has torch loaded
    assert lines == ["one", "two"]


def test_run_measured_says_why_a_program_does_not_start(tmp_path: Path):
    code, _, _, lines = run_measured([str(tmp_path / "none")], tmp_path)
    assert code == 1
    assert "No such file" in lines[-1]


def test_each_peer_has_a_script_that_nothing_imports():
    folder = Path(sys.modules["benchmarks.peer_table"].__file__ or "").with_name("peers")
    assert {path.stem for path in folder.glob("*.py")} == {*SCRIPTS.values(), "images", "job", "__init__"}
    assert not [name for name in sys.modules if name.startswith("benchmarks.peers.") and not name.endswith(".job")]
