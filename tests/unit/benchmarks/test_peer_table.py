import sys
from pathlib import Path

import pytest
import torch

from flowers.benchmarks.peer_table import SCRIPTS, Entry, peer_rows, run_measured
from flowers.evaluation.predictions import Predictions


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
    folder = Path(sys.modules["flowers.benchmarks.peer_table"].__file__ or "").with_name("peers")
    assert {path.stem for path in folder.glob("*.py")} == {*SCRIPTS.values(), "images", "job", "__init__"}
    assert not [
        name for name in sys.modules if name.startswith("flowers.benchmarks.peers.") and not name.endswith(".job")
    ]
