import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_rel

from flowers.evaluation.predictions import Predictions
from flowers.evaluation.statistics import (
    RunGroup,
    group_verdict,
    holm,
    mcnemar,
    mcnemar_verdict,
    mean_interval,
    paired_p,
    selection_bias,
    selection_note,
    wilson_interval,
)


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


def test_holm_adjusts_as_in_the_literature():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_verdict_names_the_correction():
    comparison = mcnemar(predictions("0" * 10), predictions("1" * 10))
    assert "Holm's correction for 3 comparisons" in mcnemar_verdict(comparison, 3)
    assert "Holm" not in mcnemar_verdict(comparison)


def test_paired_p_without_overlap_is_the_paired_t_test():
    first, second = [0.91, 0.93, 0.92, 0.95], [0.90, 0.91, 0.93, 0.92]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    assert paired_p(differences) == pytest.approx(ttest_rel(first, second).pvalue)


def test_corrected_t_test_of_folds_widens_by_the_shared_training_images():
    """By hand: five folds, mean 0.02, deviation 0.01, so t = 0.02 / (0.01 * sqrt(1/5 + 1/4)) = 2.981, 4 degrees."""
    differences = [0.02 + 0.01 * each for each in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    deviation = float(np.std([-1.0, -0.5, 0.0, 0.5, 1.0], ddof=1))
    scaled = [0.02 + (each - 0.02) / deviation for each in differences]
    assert paired_p(scaled, overlap=0.25) == pytest.approx(0.0406, abs=1e-4)
    narrow, wide = mean_interval(scaled), mean_interval(scaled, overlap=0.25)
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(1.5)


def test_group_verdict_corrects_for_folds_and_not_for_seeds():
    lead = (0.012, 0.01, 0.02, 0.004, 0.018)
    for key, word in (("data.fold", "corrected for folds"), ("seed", "(paired t-test, p")):
        best = RunGroup("a", {f"{key}={number}": 0.9 + each for number, each in enumerate(lead)})
        second = RunGroup("b", {f"{key}={number}": 0.9 for number in range(5)})
        assert word in group_verdict([best, second])


def test_selection_bias_is_that_of_the_maximum_of_equal_models():
    """The expected maximum of k normal draws is 1.5388 deviations for k = 10 (order statistics)."""
    generator = np.random.default_rng(0)
    correct = generator.random((40, 10, 400)) < 0.8
    found = np.mean([selection_bias(each) for each in correct])
    observed = np.mean([each.mean(1).max() for each in correct]) - 0.8
    assert observed == pytest.approx(1.5388 * (0.8 * 0.2 / 400) ** 0.5, rel=0.15)
    assert found == pytest.approx(observed, rel=0.5)
    assert selection_bias(correct[0, :1]) == 0


def test_selection_note_says_how_many_were_compared():
    assert selection_note([predictions("1100"), predictions("1010")]).startswith(
        "the best of 2, chosen on these 4 images"
    )
