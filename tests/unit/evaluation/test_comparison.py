import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flowers.evaluation.comparison import load_run_groups
from flowers.evaluation.statistics import group_verdict
from flowers.evaluation.tables import ranking_table


def test_load_run_groups_groups_by_all_overrides_but_seed_and_fold(tmp_path: Path):
    for number, (rate, seed, accuracy) in enumerate(
        [("1e-3", 0, 0.91), ("1e-3", 1, 0.93), ("1e-4", 0, 0.81), ("1e-4", 1, 0.84)]
    ):
        run = tmp_path / str(number)
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "overrides.yaml").write_text(f"- model=resnet18\n- optimizer.lr={rate}\n- seed={seed}\n")
        val = {"accuracy": accuracy, "loss": 0.5, "n": 100, "interval": [0.7, 1.0]}
        (run / "result.json").write_text(json.dumps({"val": val, "cost": {"seconds": {"head": 1.0}}}))
    best, other = load_run_groups(tmp_path, "val")
    assert best.name == "optimizer.lr=1e-3"
    assert best.mean == pytest.approx(0.92)
    assert other.accuracies == {"seed=0": 0.81, "seed=1": 0.84}
    assert group_verdict([best, other]).startswith("the best is significantly better than the second best (paired")


def test_ranking_table_folds_names_and_never_cuts_them():
    names = ["a" * 200 + "1", "a" * 200 + "2"]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(ranking_table({name: {"accuracy": 0.5} for name in names}, {}))
    cells = "".join(line.split()[0] for line in console.export_text().splitlines()[2:] if line.split())
    assert all(name in cells for name in names)


def test_comparison_imports_neither_lightning_nor_tensorboard():
    code = "import sys, flowers.evaluation.comparison; print({'lightning', 'tensorboard'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
