import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flowers.evaluation.comparison import compare_with_best, group_runs, load_run_groups, pooled_predictions
from flowers.evaluation.statistics import group_verdict, mcnemar
from flowers.evaluation.tables import ranking_table
from flowers.runs.predictions import Predictions


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


def test_pooled_predictions_hold_each_image_of_the_folds_of_the_first_seed_once(tmp_path: Path):
    runs = []
    for fold in range(3):
        for seed in (0, 1):
            run = tmp_path / f"{seed}-{fold}"
            logits = torch.full((2, 2), float(seed), dtype=torch.float64)
            predicted = Predictions([f"{fold}a", f"{fold}b"], torch.tensor([0, 1]), logits, ["a", "b"])
            predicted.save(run / "predictions" / "val.csv")
            runs.append(([f"seed={seed}", f"data.fold={fold}"], 0.5, run))
    pooled = pooled_predictions(group_runs(runs)[0], "val")
    assert list(pooled.paths) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert pooled.logits.sum() == 0


def test_compare_with_best_adjusts_the_p_values():
    labels = torch.zeros(20, dtype=torch.int64)

    def correct(count: int) -> Predictions:
        logits = torch.tensor([[1.0, 0.0]] * count + [[0.0, 1.0]] * (20 - count), dtype=torch.float64)
        return Predictions([str(number) for number in range(20)], labels, logits, ["a", "b"])

    best, others = correct(20), {"a": correct(14), "b": correct(13)}
    adjusted = compare_with_best(best, others)
    assert adjusted["b"]["p"] == pytest.approx(2 * mcnemar(others["b"], best)["p"])
    assert adjusted["a"]["p"] == pytest.approx(mcnemar(others["a"], best)["p"])


def test_compare_with_best_names_the_run_that_was_scored_on_other_images():
    best, other = (Predictions([path], torch.tensor([0]), torch.eye(2)[:1], ["a", "b"]) for path in ("1", "2"))
    with pytest.raises(ValueError, match=r"^runs/x: the runs were scored on different images"):
        compare_with_best(best, {"runs/x": other})


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
