import json
import shutil
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from flowers.compare import main
from flowers.evaluation.comparison import load_run_groups
from flowers.evaluation.predictions import Predictions
from flowers.evaluation.statistics import RunGroup, group_verdict, mcnemar, mcnemar_verdict
from tests.helpers import configuration


def answers(right: str, paths: str = "p") -> Predictions:
    """Photos of class a, told right where there is a 1."""
    logits = torch.tensor([[1.0, 0.0] if mark == "1" else [0.0, 1.0] for mark in right], dtype=torch.float64)
    names = [f"{paths}{number}" for number in range(len(right))]
    return Predictions(names, torch.zeros(len(right), dtype=torch.int64), logits, ["a", "b"])


def test_the_difference_is_that_of_the_photos_that_changed_sides():
    compared = mcnemar(answers("1100000000" * 3), answers("1011111100" * 3))
    assert compared["difference"] == pytest.approx((6 - 1) / 10)
    assert (len(compared["gained"]), len(compared["lost"])) == (18, 3)
    assert compared["lost"][0] == "p1"
    assert compared["p"] == binomtest(18, 21).pvalue
    assert compared["interval"][0] < 0.5 < compared["interval"][1]
    assert mcnemar_verdict(compared).startswith("better by more than chance")


def test_a_run_does_not_differ_from_itself_nor_from_one_a_photo_away():
    assert mcnemar(answers("10"), answers("10"))["p"] == 1
    assert mcnemar_verdict(mcnemar(answers("1110"), answers("1111"))).startswith("no difference shown")


def test_other_photos_are_refused():
    with pytest.raises(ValueError, match="did not judge the same photos"):
        mcnemar(answers("10"), answers("10", paths="q"))


def test_the_program_compares_runs_and_refuses_what_is_none(trained: Path, tmp_path: Path, capsys):
    shutil.copytree(trained, tmp_path / "again")
    main(configuration(f"runs=[{trained},{tmp_path}/again]", f"output={tmp_path}/c.json", name="compare"))
    assert "no difference shown" in capsys.readouterr().out
    (pair,) = json.loads((tmp_path / "c.json").read_text())["against"].values()
    assert (pair["difference"], pair["gained"], pair["lost"]) == (0, [], [])
    for overrides, message in (
        ([], "which runs"),
        ([f"runs=[{trained},{tmp_path}]"], "no run there"),
        ([f"runs=[{trained},{trained}]", "split=train"], r"no predictions/train\.csv"),
        ([f"multirun={tmp_path}"], "no finished run there"),
    ):
        with pytest.raises(ValueError, match=message):
            main(configuration(*overrides, name="compare"))


def test_a_multiruns_runs_are_grouped_by_all_but_seed_and_fold(tmp_path: Path):
    for number, (rate, seed, accuracy) in enumerate(
        [("1e-3", 0, 0.91), ("1e-3", 1, 0.93), ("1e-4", 0, 0.81), ("1e-4", 1, 0.84)]
    ):
        run = tmp_path / str(number)
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "overrides.yaml").write_text(f"- model=resnet18\n- optimizer.lr={rate}\n- seed={seed}\n")
        (run / "result.json").write_text(json.dumps({"val": {"accuracy": accuracy}}))
    best, other = load_run_groups(tmp_path, "val")
    assert best.name == "optimizer.lr=1e-3"
    assert best.mean == pytest.approx(0.92)
    assert other.accuracies == {"seed=0": 0.81, "seed=1": 0.84}
    assert group_verdict([best, other]).startswith("the best is better than the next (paired")


def test_the_verdict_needs_runs_and_a_difference():
    assert "nothing to compare" in group_verdict([RunGroup("a", {"": 0.9})])
    assert "too few runs" in group_verdict([RunGroup("a", {"": 0.9}), RunGroup("b", {"": 0.8})])
    same = {"seed=0": 0.9, "seed=1": 0.91}
    assert "no difference shown" in group_verdict([RunGroup("a", same), RunGroup("b", dict(same))])
    unpaired = group_verdict([RunGroup("a", same), RunGroup("b", {"seed=2": 0.9, "seed=3": 0.92, "seed=4": 0.89})])
    assert "no difference shown" in unpaired
    assert "Welch" in unpaired
