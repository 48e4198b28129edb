import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_ind, ttest_rel

from flowers.evaluation.statistics import (
    DECISIVE_IMAGES,
    RunGroup,
    difference_interval,
    group_verdict,
    holm,
    mcnemar,
    mcnemar_p,
    mcnemar_verdict,
    mean_interval,
    paired_interval,
    paired_p,
    selection_bias,
    selection_note,
    unpaired_test,
    wilson_interval,
)
from flowers.runs.predictions import Predictions


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


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (0, 1, 44), (20, 5, 570), (40, 20, 160)])
def test_paired_interval_solves_the_published_polynomial(gained: int, lost: int, n: int):
    """Yang, Sun and Hardin (Statistics in Medicine 2012): the limits of Tango are roots of a polynomial of degree 4."""
    d, m, r = gained - lost, gained + lost, n / 1.959963984540054**2
    g = n / r
    polynomial = [
        n**2 * (r + 1) ** 2,
        -n * d * (r + 1) * (4 * r + 1),
        2 * n * d**2 * (3 * r + 2) / g - n**2 * (m / g + 1),
        n * d * (2 * m / g + 1) - d**3 * (4 * r + 1) / g,
        d**2 * (d**2 / g - m) / g,
    ]
    real = [root.real for root in np.roots(polynomial) if abs(root.imag) < 1e-6]
    for limit in paired_interval(gained, lost, n):
        assert min(abs(limit - root) for root in real) < 1e-6


def test_paired_interval_is_that_of_the_literature():
    """Fagerland, Lydersen and Laake (Statistics in Medicine 2014), airway hyper-responsiveness: 1, 7, 21 children."""
    assert paired_interval(1, 7, 21) == pytest.approx([-0.517, -0.026], abs=1e-3)


def test_paired_interval_has_a_width_where_both_models_answer_alike():
    z2 = 1.959963984540054**2
    assert mcnemar(predictions("1" * 50), predictions("1" * 50))["interval"] == pytest.approx(
        [-z2 / (50 + z2), z2 / (50 + z2)]
    )


@pytest.mark.parametrize("gained", range(12))
def test_paired_interval_leaves_out_0_wherever_mcnemar_is_significant(gained: int):
    for lost in range(12):
        low, high = paired_interval(gained, lost, 100)
        assert low < (gained - lost) / 100 < high
        if mcnemar_p(gained, lost) < 0.05:
            assert not low <= 0 <= high


def test_verdict_says_that_few_changed_images_decide_nothing():
    assert mcnemar_p(DECISIVE_IMAGES, 0) < 0.05 <= mcnemar_p(DECISIVE_IMAGES - 1, 0)
    few, many = predictions("0" * 5 + "1" * 95), predictions("0" * 6 + "1" * 94)
    assert "too few to tell: they differ on 5 of 100 images" in mcnemar_verdict(mcnemar(few, predictions("1" * 100)))
    assert "significantly better" in mcnemar_verdict(mcnemar(many, predictions("1" * 100)))
    half = mcnemar(predictions("10" * 50), predictions("01" * 50))
    assert mcnemar_verdict(half).endswith("they cannot be told apart")


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


def group(name: str, images: int, *correct: int) -> RunGroup:
    """Runs of seeds 0, 1, … on the same images."""
    accuracies = {f"seed={seed}": each / images for seed, each in enumerate(correct)}
    return RunGroup(name, accuracies, {}, dict.fromkeys(accuracies, images))


def test_two_seeds_that_are_each_one_image_better_are_too_few_to_tell():
    assert paired_p([0.01, 0.01]) == pytest.approx(0.5)  # the sign test
    assert paired_p([0.01, 0.01], images=100) == 1.0  # one image that only one model gets right
    verdict = group_verdict([group("a", 100, 91, 93), group("b", 100, 90, 92)])
    assert verdict.startswith("no significant difference")
    assert "too few to tell: they differ on 1 of 100 images" in verdict


def test_groups_without_a_spread_have_the_p_of_permutations():
    """By hand: two of ten divisions of five runs into two and three are as uneven."""
    assert unpaired_test([0.9, 0.9], [0.8, 0.8, 0.8]).p == pytest.approx(0.2)
    assert "permutation test" in group_verdict([RunGroup("a", {"s=0": 0.9, "s=1": 0.9}), group("b", 10, 8, 8, 8)])


def test_unpaired_test_is_that_of_welch():
    first, second = [0.91, 0.93, 0.92], [0.90, 0.89, 0.86, 0.88]
    assert unpaired_test(first, second).p == pytest.approx(ttest_ind(first, second, equal_var=False).pvalue)


def test_tests_over_runs_are_no_surer_than_the_fewest_images():
    differences = [0.0401, 0.0399, 0.04]
    assert paired_p(differences) < 1e-4
    assert paired_p(differences, images=100) == mcnemar_p(4, 0)
    assert paired_p(differences, images=10_000) == pytest.approx(paired_p(differences))


def test_mean_interval_of_equal_runs_is_that_of_their_images():
    assert mean_interval([0.93, 0.93], images=100) == pytest.approx(wilson_interval(93, 100))
    assert mean_interval([0.93, 0.93], 1.0, 100) == pytest.approx(wilson_interval(93, 100))
    low, high = mean_interval([0.9304, 0.9304])  # at least 15 images
    assert low < 0.9 < high


def test_difference_interval_of_equal_differences_is_that_of_the_fewest_images():
    assert difference_interval([-0.02, -0.02], images=100) == pytest.approx(paired_interval(0, 2, 100))
    low, high = difference_interval([0.02, 0.02])
    assert low < 0 < high
    low, high = difference_interval([-0.02, 0.03, 0.05], 0.5, 10_000)
    width = 4.302653 * float(np.std([-0.02, 0.03, 0.05], ddof=1)) * (1 / 3 + 0.5) ** 0.5
    assert (low, high) == pytest.approx((0.02 - width, 0.02 + width))


def test_run_group_counts_the_images_of_all_folds_of_one_seed():
    keys = [f"seed={seed} data.fold={fold}" for seed in (0, 1) for fold in range(3)]
    assert RunGroup("a", dict.fromkeys(keys, 0.9), {}, dict.fromkeys(keys, 20)).images == 60
    assert group("b", 100, 90, 92).images == 100
    assert RunGroup("c", {"": 0.9}).images is None


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
