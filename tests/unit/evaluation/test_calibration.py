import pytest
import torch

from flowers.evaluation.calibration import (
    choose_temperature,
    coverage_curve,
    cross_fitted_probabilities,
    fit_temperature,
    reliability_bins,
)
from flowers.runs.predictions import Predictions


def overconfident(n: int = 400, factor: float = 3.0) -> Predictions:
    """Return predictions with calibrated logits multiplied by `factor`: the labels are drawn from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, 4, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return Predictions([f"{index:04}.png" for index in range(n)], labels, logits * factor, list("abcd"))


def test_fit_temperature_undoes_overconfidence():
    predictions = overconfident(4000)
    assert abs(fit_temperature(predictions.logits, predictions.labels) - 3) < 0.2


def test_cross_fitted_probabilities_of_an_image_do_not_depend_on_its_label():
    predictions = overconfident()
    before = cross_fitted_probabilities(predictions)
    labels = predictions.labels.clone()
    labels[7] = (labels[7] + 1) % 4
    after = cross_fitted_probabilities(Predictions(predictions.paths, labels, predictions.logits, predictions.classes))
    changed = (before != after).any(1)
    assert changed.any()
    assert not changed[7]


def test_choose_temperature_keeps_a_calibration_only_if_it_helps_other_images():
    predictions = overconfident()
    assert choose_temperature(predictions) == fit_temperature(predictions.logits, predictions.labels)
    few = overconfident(100, factor=1.0)
    assert fit_temperature(few.logits, few.labels) != 1
    assert choose_temperature(few) == 1


def test_cross_fitted_probabilities_accept_fewer_images_than_folds():
    for n in (1, 2):
        sums = cross_fitted_probabilities(overconfident(n)).sum(1)
        assert torch.allclose(sums, torch.ones(n, dtype=torch.float64))


def test_reliability_bins_hold_every_image_once_and_leave_out_empty_bins():
    first, second, last = [0.5, 0.5], [0.52, 0.48], [0.0, 1.0]
    probabilities = torch.tensor([first, second, last] * 100, dtype=torch.float64)
    low, high = reliability_bins(probabilities, torch.tensor([True, False, True] * 100))
    assert low == {"confidence": pytest.approx(0.51), "accuracy": 0.5, "n": 200}
    assert high == {"confidence": 1.0, "accuracy": 1.0, "n": 100}


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (39, [39]), (40, [20, 20]), (299, [22, 21] * 7)])
def test_reliability_bins_of_few_images_have_at_least_twenty(n: int, sizes: list[int]):
    predictions = overconfident(n)
    bins = reliability_bins(predictions.probabilities(), predictions.correct)
    assert sorted(row["n"] for row in bins) == pytest.approx(sorted(sizes), abs=1)
    assert sum(row["n"] for row in bins) == n
    confidences = [row["confidence"] for row in bins]
    assert confidences == sorted(confidences)


def test_coverage_curve_ends_at_the_accuracy_of_all_images():
    predictions = overconfident()
    curve = coverage_curve(predictions.probabilities(), predictions.correct)
    assert [round(100 * point["coverage"]) for point in curve] == list(range(2, 101, 2))
    assert curve[-1]["accuracy"] == predictions.correct.double().mean().item()
    confidences = [point["confidence"] for point in curve]
    assert confidences == sorted(confidences, reverse=True)
