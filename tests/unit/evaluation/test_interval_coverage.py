"""How often intervals hold the true value at their edges: few images, hardly a mistake.

A score interval is not at its level at every true value, but near it in the mean over true values. Each test says how
far below 95 % its figure may be. docs/evaluation.md has the figures.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import binom, mannwhitneyu, norm
from sklearn.metrics import average_precision_score

from flowers.evaluation.class_curves import auroc_interval, average_precision_interval
from flowers.evaluation.metrics import MetricInputs
from flowers.evaluation.statistics import difference_interval, mean_interval, paired_interval, paired_p, wilson_bounds
from flowers.runs.predictions import Predictions

Draw = Callable[[np.random.Generator], tuple[list[float], float]]  # an interval, and the true value


def coverage(draw: Draw, draws: int, seed: int = 0) -> float:
    """Return the share of `draws` intervals that hold the true value."""
    rng = np.random.default_rng(seed)
    held = [low <= truth <= high for (low, high), truth in (draw(rng) for _ in range(draws))]
    return float(np.mean(held))


@pytest.mark.parametrize("n", [5, 20, 100, 570])
def test_wilson_interval_holds_95_percent_in_the_mean_of_rates_near_1(n: int):
    """Exact, no draws. At one rate alone it may hold 83 % (5 images, 0.964) or 84 % (100 images, 0.998)."""
    rates, hits = np.linspace(0.9, 1, 1001)[1:-1], np.arange(n + 1)
    low, high = wilson_bounds(hits, np.full(n + 1, n))
    held = [binom.pmf(hits, n, rate)[(low <= rate) & (rate <= high)].sum() for rate in rates]
    assert np.mean(held) >= 0.94
    assert min(held) >= 0.82


@cache
def cached_paired_interval(gained: int, lost: int, n: int) -> list[float]:
    return paired_interval(gained, lost, n)


def draw_pairs(n: int, gained: float, lost: float) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[list[float], float]:
        counts = rng.multinomial(n, [gained, lost, 1 - gained - lost])
        return cached_paired_interval(int(counts[0]), int(counts[1]), n), gained - lost

    return draw


PAIRS = [(20, 0.0, 0.0), (20, 0.05, 0.01), (20, 0.02, 0.02), (100, 0.01, 0.0), (100, 0.02, 0.03), (570, 0.002, 0.004)]


@pytest.mark.parametrize("case", PAIRS)
def test_paired_interval_holds_with_few_changed_images(case: tuple[int, float, float]):
    assert coverage(draw_pairs(*case), 2000) >= 0.93


def draw_runs(images: int, runs: int, mean: float, folds: bool) -> Draw:
    """Draw the accuracies of runs on the same images, whose difficulties differ, or of folds on parts of the images."""

    def draw(rng: np.random.Generator) -> tuple[list[float], float]:
        rates = rng.beta(0.3 * mean / (1 - mean), 0.3, images)
        if folds:
            correct = np.array([part.mean() for part in np.array_split(rng.random(images) < rates, runs)])
            return mean_interval(correct.tolist(), 1 / (runs - 1), images), mean
        correct = (rng.random((runs, images)) < rates).mean(1)
        return mean_interval(correct.tolist(), images=images), mean

    return draw


RUNS = [(n, k, mean, folds) for n in (30, 100, 570) for k in (2, 5) for mean in (0.9, 0.99) for folds in (False, True)]


@pytest.mark.parametrize("case", RUNS)
def test_mean_interval_holds_other_runs_on_other_images(case: tuple[int, int, float, bool]):
    assert coverage(draw_runs(*case), 500) >= 0.92


def draw_classes(per_class: int, classes: int, column: int) -> Draw:
    """Draw answers that are wrong at a rate below 0.1, each wrong class as often; return the interval of an average."""

    def draw(rng: np.random.Generator) -> tuple[list[float], float]:
        error = rng.uniform(0, 0.1)
        labels = np.repeat(np.arange(classes), per_class)
        shift = rng.integers(1, classes, len(labels)) * (rng.random(len(labels)) < error)
        logits = torch.from_numpy(np.eye(classes)[(labels + shift) % classes])
        paths = [str(number) for number in range(len(labels))]
        inputs = MetricInputs(Predictions(paths, torch.from_numpy(labels), logits, [*map(str, range(classes))]))
        return inputs.average_intervals[:, column].tolist(), 1 - error

    return draw


CLASSES = [
    (per_class, classes, column)
    for per_class in (5, 20, 100)
    for classes in (2, 5)
    for column in (0, 1, 2, 3)  # macro precision, recall and F1, the F1 of a class
]


@pytest.mark.parametrize("case", CLASSES)
def test_intervals_of_averages_over_classes_and_of_f1_hold(case: tuple[int, int, int]):
    assert coverage(draw_classes(*case), 200) >= 0.91


def draw_areas(positives: int, negatives: int, distance: float, truth: float, is_auroc: bool) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[list[float], float]:
        of_class, others = rng.normal(distance, 1, positives), rng.normal(0, 1, negatives)
        if is_auroc:
            area = float(mannwhitneyu(of_class, others).statistic) / (positives * negatives)
            return auroc_interval(area, positives, negatives), truth
        is_positive = np.repeat([1, 0], [positives, negatives])
        area = float(average_precision_score(is_positive, np.concatenate([of_class, others])))
        return average_precision_interval(area, positives), truth

    return draw


AREAS = [(1, 1), (1, 20), (5, 5), (10, 300), (100, 100)]


@pytest.mark.parametrize("sizes", AREAS)
@pytest.mark.parametrize(("distance", "truth"), [(2.326, 0.95), (3.290, 0.99)])  # Phi(distance / sqrt(2))
def test_auroc_interval_holds_with_few_scores(sizes: tuple[int, int], distance: float, truth: float):
    assert coverage(draw_areas(*sizes, distance, truth, True), 300) >= 0.92


def true_average_precision(distance: float, share: float) -> float:
    thresholds = np.linspace(-9, 12, 20001)
    recall, others = norm.sf(thresholds - distance), norm.sf(thresholds)
    precision = share * recall / (share * recall + (1 - share) * others)
    return float(-(np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


@pytest.mark.parametrize("sizes", [(5, 5), (10, 300), (100, 100)])
def test_average_precision_interval_holds_with_few_images_of_the_class(sizes: tuple[int, int]):
    truth = true_average_precision(3.290, sizes[0] / sum(sizes))
    assert coverage(draw_areas(*sizes, 3.290, truth, False), 200) >= 0.94


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("case", [(100, 2, 0.9), (100, 5, 0.99), (570, 5, 0.9)])
def test_settings_of_equal_accuracy_are_seldom_told_apart(case: tuple[int, int, float], folds: bool):
    """The difficulty of a tenth of the images differs between two settings: runs on these images, or folds of them."""
    images, runs, mean = case
    rng = np.random.default_rng(0)
    held, alarms, draws = 0, 0, 300
    for _ in range(draws):
        first, fresh = (rng.beta(0.3 * mean / (1 - mean), 0.3, images) for _ in range(2))
        second = np.where(rng.random(images) < 0.9, first, fresh)
        correct = np.array([rng.random((1 if folds else runs, images)) < rates for rates in (first, second)])
        parts = np.array_split(correct[:, 0], runs, axis=1) if folds else list(correct.swapaxes(0, 1))
        differences = [float(part[0].mean() - part[1].mean()) for part in parts]
        overlap = 1 / (runs - 1) if folds else 0.0
        low, high = difference_interval(differences, overlap, images)
        held += low <= 0 <= high
        alarms += paired_p(differences, overlap, images) < 0.05
    assert held / draws >= 0.92
    assert alarms / draws <= 0.08
