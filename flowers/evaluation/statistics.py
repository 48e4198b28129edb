"""Confidence intervals and significance tests.

Images are a sample: no interval here has a width of zero, whatever the data, and none leaves the range of its value.
docs/evaluation.md has a table of what is used where, and how often each interval held the true value in simulations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, t

from flowers.runs.predictions import Predictions

Z = 1.959963984540054  # standard errors on each side of a 95 % interval

DECISIVE_IMAGES = 6  # images that only one of two models gets right, below which McNemar's p cannot be below 0.05

_NO_SPREAD = 1e-12  # a standard deviation that comes from rounding

_CORRECTED = ", corrected for folds that share training images"


def wilson_bounds(correct: ArrayLike, n: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lows and the highs of Wilson's 95 % intervals of the proportions `correct` / `n`; 0 and 1 if `n` is 0.

    Neither needs to be a whole number: a mean of several accuracies on the same images is as sure as one of them.
    """
    hits, counts = np.asarray(correct, dtype=np.float64), np.asarray(n, dtype=np.float64)
    value = hits / counts.clip(1e-9)
    center = (hits + Z**2 / 2) / (counts + Z**2)
    half = Z / (counts + Z**2) * np.sqrt((hits * (1 - value)).clip(0) + Z**2 / 4)
    return np.minimum(center - half, value).clip(0, 1), np.maximum(center + half, value).clip(0, 1)


def wilson_interval(correct: float, n: float) -> list[float]:
    """Return Wilson's 95 % interval [low, high] of the proportion `correct` / `n`; see `wilson_bounds`."""
    return [float(bound) for bound in wilson_bounds(correct, n)]


def average_interval(
    values: NDArray[np.float64], bounds: NDArray[np.float64], sizes: NDArray[np.float64], spread: float = 1.0
) -> list[float]:
    """Return the 95 % interval [low, high] of the average of proportions in K groups of images, such as classes.

    The distances of the limits from the average are the roots of the squared ones of the groups, over K (Zou, Huang and
    Zhang, Computational Statistics and Data Analysis 2009, 53:1080-1085). A group without a mistake adds nothing to the
    upper one: the interval also holds that of Wilson for as many images as give one proportion this variance.

    Args:
        values: The proportions (K,).
        bounds: The limits of their 95 % intervals (2, K).
        sizes: The numbers of images (K,).
        spread: The variance of the average over that of independent proportions, at most.
    """
    average, count = float(values.mean()), len(values)
    low, high = np.sqrt(spread * ((values - bounds) ** 2).sum(1)) / count
    variance = float((values * (1 - values) / sizes.clip(1)).sum())
    likely = average * (1 - average) / variance if variance else 1 / float((1 / sizes.clip(1)).sum())
    of_images = likely * count**2
    pooled = wilson_interval(average * of_images, of_images)
    return [max(0.0, min(average - low, pooled[0])), min(1.0, max(average + high, pooled[1]))]


def score_interval(value: float, variance: Callable[[float], float], lowest: float = 0.0) -> list[float]:
    """Return the two values whose distance from `value` is 1.96 times their own standard error.

    As in the interval of Wilson, the standard error is that of the limit and not of the estimate, which may be 0.

    Args:
        value: The estimate, from `lowest` to 1.
        variance: The variance of the estimate if the true value is its argument; 0 at `lowest` and at 1.
        lowest: The lowest possible value.
    """

    def excess(limit: float) -> float:
        return (value - limit) ** 2 - Z**2 * variance(limit)

    tiny = 1e-12
    low = brentq(excess, lowest, value - tiny) if excess(lowest) > 0 > excess(value - tiny) else lowest
    high = brentq(excess, value + tiny, 1.0) if excess(1.0) > 0 > excess(value + tiny) else 1.0
    return [float(low), float(high)]


def paired_interval(gained: float, lost: float, n: float) -> list[float]:
    """Return Tango's 95 % score interval of the difference (gained - lost) / n of two proportions of the same images.

    (Statistics in Medicine 1998, 17:891-908, formula 14.) It inverts the score test of McNemar, so that it contains 0
    wherever his exact p is at least 0.05, and where both models answer alike it is that of Wilson to both sides.

    Args:
        gained: The images that only the second model gets right.
        lost: Those that only the first one gets right.
        n: All images.
    """

    def variance(difference: float) -> float:
        # The most likely share of lost images, if the true difference is this one.
        b = (2 * n - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(b**2 - 8 * n * c, 0.0)) - b) / (4 * n)
        return max(2 * share + difference * (1 - difference), 0.0) / n

    return score_interval((gained - lost) / n, variance, lowest=-1.0)


def mcnemar(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Compare two models on the same images with McNemar's exact test.

    Returns:
        `difference`: accuracy of the second minus that of the first. `interval`: its `paired_interval`. `gained` and
        `lost`: the paths of the images that only the second, or only the first, gets right. `p`: the probability of a
        division of these images at least as uneven if both models are equally good. `n`: the number of images.

    Raises:
        ValueError: The predictions are of different images or classes.
    """
    if (list(first.paths), first.labels.tolist()) != (list(second.paths), second.labels.tolist()):
        raise ValueError("the runs were scored on different images: compare runs with the same split.csv")
    if list(first.classes) != list(second.classes):
        raise ValueError("the runs have different classes: compare runs with the same classes")
    before, after = first.correct.numpy(), second.correct.numpy()
    gained, lost, n = int((after & ~before).sum()), int((before & ~after).sum()), len(first)
    return {
        "difference": (gained - lost) / n,
        "interval": paired_interval(gained, lost, n),
        "gained": [path for path, was, now in zip(first.paths, before, after, strict=True) if now and not was],
        "lost": [path for path, was, now in zip(first.paths, before, after, strict=True) if was and not now],
        "p": mcnemar_p(gained, lost),
        "n": n,
    }


def mcnemar_p(gained: int, lost: int) -> float:
    """Return McNemar's exact p value: `gained` and `lost` images are those that only one of two models gets right."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of several comparisons, adjusted by Holm's method (Scand. J. Stat. 1979, 6:65-70).

    The chance that any of them is below 0.05 without a difference is at most 5 %.

    Args:
        p_values: The p value of each comparison.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mcnemar_verdict(comparison: Mapping[str, Any], count: int = 1) -> str:
    """Put the result of `mcnemar` into words, at the 5 % level.

    Args:
        comparison: The result; with several, its `p` is adjusted by `holm`.
        count: The number of comparisons.
    """
    test = "McNemar's p" if count == 1 else f"McNemar's p with Holm's correction for {count} comparisons"
    if comparison["p"] >= 0.05:
        changed = len(comparison["gained"]) + len(comparison["lost"])
        return f"no significant difference ({test} = {comparison['p']:.3g}): {_why_not(changed, comparison['n'])}"
    word = "better" if comparison["difference"] > 0 else "worse"
    return f"significantly {word} ({test} = {comparison['p']:.3g})"


def _why_not(changed: int | None, n: int | None) -> str:
    """Say why two models cannot be told apart, of which `changed` of `n` images are in favor of one or the other."""
    if changed is None or changed >= DECISIVE_IMAGES:
        return "they cannot be told apart"
    return f"too few to tell: they differ on {changed} of {n:,} images, and fewer than {DECISIVE_IMAGES} decide nothing"


def selection_bias(correct: NDArray[np.bool_]) -> float:
    """Estimate by how much the accuracy of the best of k models is too high, if it was chosen on the same images.

    In each bootstrap sample of the images, the model that is best there is scored there and on the images outside of
    the sample; the estimate is the mean difference (Tsamardinos et al., Machine Learning 2018, arXiv:1708.07180).

    Args:
        correct: Whether each of k models is right on each of N images: (k, N).
    """
    models, n = correct.shape
    if models < 2:
        return 0.0
    rounds = max(20, min(1000, 2 * 10**7 // n))  # within a few hundred megabytes
    rates = correct.astype(np.float64)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=rounds)  # of each image in each sample
    inside, is_outside = counts @ rates.T / n, (counts == 0).astype(np.float64)
    outside = is_outside @ rates.T / np.maximum(is_outside.sum(1, keepdims=True), 1)
    best = inside.argmax(1)[:, None]
    return float((np.take_along_axis(inside, best, 1) - np.take_along_axis(outside, best, 1)).mean())


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation; the latter is NaN for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def mean_interval(values: Sequence[float], overlap: float = 0.0, images: int | None = None) -> list[float]:
    """Return the 95 % interval [low, high] of a mean accuracy, for other runs and for other images of the same kind.

    The interval over the runs is that of Student's t distribution, that over the images is Wilson's. Independent runs
    on the same images do not vary with the images: the distances of both limits from the mean are added as squares
    (Newcombe, Statistics in Medicine 1998, 17:873-890). Folds do vary with the images: the wider one counts.

    Args:
        values: One accuracy for each of at least two runs.
        overlap: The number of test images over that of training images, if the runs are folds of a cross-validation:
            they share training images, and the variance of their mean is larger (Nadeau and Bengio, Machine Learning
            2003, 52:239-281). 0 for independent runs.
        images: The number of different images that the runs were scored on. None if it is not known: only the spread
            counts then, and where there is none, the fewest images that can have such a mean.
    """
    mean, half = _mean_and_half_width(values, overlap)
    if images is None and half < _NO_SPREAD:
        images = math.ceil(1 / max(min(mean, 1 - mean), 1e-9) - 1e-9) if 0 < mean < 1 else 1
    if images is None:
        return [max(0.0, mean - half), min(1.0, mean + half)]
    low, high = wilson_interval(mean * images, images)
    combine = max if overlap else math.hypot
    return [max(0.0, mean - combine(half, mean - low)), min(1.0, mean + combine(half, high - mean))]


def difference_interval(differences: Sequence[float], overlap: float = 0.0, images: int | None = None) -> list[float]:
    """Return the 95 % interval [low, high] of the mean of at least two paired differences of accuracies.

    The interval of Student's t distribution, but at least that of the fewest images that can make such a difference,
    as if one model got all of them right and the other one none.

    Args:
        differences: One for each pair of runs.
        overlap: See `mean_interval`.
        images: See `mean_interval`.
    """
    mean, half = _mean_and_half_width(differences, overlap)
    if images is None and half < _NO_SPREAD:
        images = math.ceil(1 / abs(mean) - 1e-9) if abs(mean) > _NO_SPREAD else 1
    low, high = mean - half, mean + half
    if images is not None:
        of_images = paired_interval(max(mean, 0) * images, max(-mean, 0) * images, images)
        low, high = min(low, of_images[0]), max(high, of_images[1])
    return [max(-1.0, low), min(1.0, high)]


def _mean_and_half_width(values: Sequence[float], overlap: float) -> tuple[float, float]:
    mean, deviation = mean_std(values)
    return mean, float(t.ppf(0.975, len(values) - 1)) * deviation * (1 / len(values) + overlap) ** 0.5


class GroupTest(NamedTuple):
    """The result of a test that two groups of runs have the same mean accuracy: the p value, and what gave it."""

    p: float
    name: str


def paired_test(differences: Sequence[float], overlap: float = 0.0, images: int | None = None) -> GroupTest:
    """Test that the mean of at least two paired differences of accuracies is 0.

    The p value is that of the t-test, or of the sign test where the differences do not vary, but at least that of
    McNemar's test on the fewest images that can make such a difference.

    Args:
        differences: One for each pair of runs.
        overlap: See `mean_interval`.
        images: See `mean_interval`.
    """
    mean, deviation = mean_std(differences)
    if abs(mean) < _NO_SPREAD:
        return GroupTest(1.0, "equal means")
    if deviation < _NO_SPREAD:
        return _at_least_of_images(GroupTest(mcnemar_p(len(differences), 0), "sign test"), mean, images)
    statistic = mean / (deviation * (1 / len(differences) + overlap) ** 0.5)
    p = 2 * float(t.sf(abs(statistic), len(differences) - 1))
    return _at_least_of_images(GroupTest(p, "paired t-test" + _CORRECTED * (overlap > 0)), mean, images)


def paired_p(differences: Sequence[float], overlap: float = 0.0, images: int | None = None) -> float:
    """Return the p value of `paired_test`."""
    return paired_test(differences, overlap, images).p


def unpaired_test(
    first: Sequence[float],
    second: Sequence[float],
    overlaps: tuple[float, float] = (0.0, 0.0),
    images: int | None = None,
) -> GroupTest:
    """Test that two groups of at least two accuracies have the same mean.

    The p value is that of Welch's t-test, or of the permutation test where neither group varies, but at least that of
    McNemar's test on the fewest images that can make such a difference.

    Args:
        first: The accuracies of the first group.
        second: Those of the second one.
        overlaps: The `overlap` of each group; see `mean_interval`.
        images: See `mean_interval`.
    """
    groups = (first, second)
    (mean, deviation), (other, spread) = map(mean_std, groups)
    difference = mean - other
    if abs(difference) < _NO_SPREAD:
        return GroupTest(1.0, "equal means")
    if max(deviation, spread) < _NO_SPREAD:
        p = min(1.0, 2 / math.comb(len(first) + len(second), len(first)))  # of the two most uneven divisions
        return _at_least_of_images(GroupTest(p, "permutation test"), difference, images)
    variances = [
        scatter**2 * (1 / len(group) + overlap)
        for group, scatter, overlap in zip(groups, (deviation, spread), overlaps, strict=True)
    ]
    total = sum(variances)
    freedom = total**2 / sum(part**2 / (len(group) - 1) for part, group in zip(variances, groups, strict=True))
    p = 2 * float(t.sf(abs(difference) / total**0.5, freedom))
    return _at_least_of_images(GroupTest(p, "Welch's t-test" + _CORRECTED * (max(overlaps) > 0)), difference, images)


def _at_least_of_images(test: GroupTest, difference: float, images: int | None) -> GroupTest:
    """Return a test, or McNemar's on the fewest images that can make the difference if that has a larger p."""
    if images is None:
        return test
    return max(test, GroupTest(mcnemar_p(round(abs(difference) * images), 0), "McNemar's test of the means"))


def selection_note(predictions: Sequence[Predictions]) -> str:
    """Say by how much the accuracy of the best of several models is too high, on the images that they share."""
    correct = np.stack([each.correct.numpy() for each in predictions])
    return (
        f"the best of {len(predictions)}, chosen on these {correct.shape[1]:,} images: "
        f"its accuracy is optimistic by about {selection_bias(correct):.4f}"
    )


class RunGroup(NamedTuple):
    """Runs that differ in seed or fold only.

    Attributes:
        name: Their common overrides.
        accuracies: The accuracy for each seed and fold, such as "seed=0 data.fold=1".
        folders: The run folders, likewise.
        counts: The number of images that each run was scored on, likewise; empty if it is not known.
    """

    name: str
    accuracies: dict[str, float]
    folders: dict[str, Path] = {}  # noqa: RUF012 (a NamedTuple copies no default, and nothing changes it)
    counts: dict[str, int] = {}  # noqa: RUF012

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return mean_std(list(self.accuracies.values()))[0]

    @property
    def overlap(self) -> float:
        """The `overlap` of `mean_interval`: 1 / (k - 1) for k folds, 0 for seeds."""
        folds = len({*map(_fold_of, self.accuracies)} - {""})
        return 1 / (folds - 1) if folds > 1 else 0.0

    @property
    def images(self) -> int | None:
        """The number of different images: those of all folds, of one seed; None if it is not known."""
        return sum({_fold_of(key): count for key, count in self.counts.items()}.values()) or None


def _fold_of(key: str) -> str:
    return "".join(part for part in key.split() if part.startswith("data.fold="))


def group_verdict(groups: Sequence[RunGroup]) -> str:
    """Say whether the best group differs from the second best, at the 5 % level.

    Args:
        groups: Best mean first. It is the `paired_test` if both groups have the same seeds and folds, else the
            `unpaired_test`.
    """
    if len(groups) < 2:
        return "one group of runs: nothing to compare"
    best, second = groups[:2]
    if min(len(best.accuracies), len(second.accuracies)) < 2:
        return "too few runs to compare the best with the second best: train at least two seeds of each"
    images = min(best.images, second.images) if best.images and second.images else None
    if best.accuracies.keys() == second.accuracies.keys():
        differences = [best.accuracies[key] - second.accuracies[key] for key in best.accuracies]
        p, name = paired_test(differences, best.overlap, images)
    else:
        values = [list(group.accuracies.values()) for group in (best, second)]
        p, name = unpaired_test(values[0], values[1], (best.overlap, second.overlap), images)
    if p < 0.05:
        return f"the best is significantly better than the second best ({name}, p = {p:.3g})"
    changed = round((best.mean - second.mean) * images) if images else None
    return (
        f"no significant difference between the best and the second best ({name}, p = {p:.3g}): "
        f"{_why_not(changed, images)}"
    )
