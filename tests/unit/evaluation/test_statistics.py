import pytest
import torch
from scipy.stats import binomtest

from flowers.evaluation.predictions import Predictions
from flowers.evaluation.statistics import RunGroup, group_verdict, mcnemar, mcnemar_verdict, wilson_interval


def predictions(correct: str, prefix: str = "p") -> Predictions:
    """Predictions of images of class a, right where there is a 1."""
    logits = torch.tensor([[1.0, 0.0] if mark == "1" else [0.0, 1.0] for mark in correct], dtype=torch.float64)
    paths = [f"{prefix}{number}" for number in range(len(correct))]
    return Predictions(paths, torch.zeros(len(correct), dtype=torch.int64), logits, ["a", "b"])


def test_wilson_interval_is_that_of_the_literature():
    assert wilson_interval(540, 570) == pytest.approx([0.92588, 0.96286], abs=1e-4)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)


def test_mcnemar_counts_the_images_that_only_one_gets_right():
    comparison = mcnemar(predictions("1100000000" * 3), predictions("1011111100" * 3))
    assert comparison["difference"] == pytest.approx((6 - 1) / 10)
    assert (len(comparison["gained"]), len(comparison["lost"])) == (18, 3)
    assert comparison["lost"][0] == "p1"
    assert comparison["p"] == binomtest(18, 21).pvalue
    assert comparison["interval"][0] < 0.5 < comparison["interval"][1]
    assert mcnemar_verdict(comparison).startswith("significantly better")


def test_mcnemar_finds_no_difference_between_equal_or_almost_equal_predictions():
    assert mcnemar(predictions("10"), predictions("10"))["p"] == 1
    assert mcnemar_verdict(mcnemar(predictions("1110"), predictions("1111"))).startswith("no significant difference")


def test_mcnemar_refuses_different_images():
    with pytest.raises(ValueError, match="scored on different images"):
        mcnemar(predictions("10"), predictions("10", prefix="q"))


def test_group_verdict_needs_two_groups_with_two_runs():
    assert "nothing to compare" in group_verdict([RunGroup("a", {"": 0.9})])
    assert "too few runs" in group_verdict([RunGroup("a", {"": 0.9}), RunGroup("b", {"": 0.8})])


def test_group_verdict_pairs_equal_seeds_and_uses_welch_otherwise():
    same = {"seed=0": 0.9, "seed=1": 0.91}
    assert "no significant difference" in group_verdict([RunGroup("a", same), RunGroup("b", dict(same))])
    unpaired = group_verdict([RunGroup("a", same), RunGroup("b", {"seed=2": 0.9, "seed=3": 0.92, "seed=4": 0.89})])
    assert "no significant difference" in unpaired
    assert "Welch" in unpaired
