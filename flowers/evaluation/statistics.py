"""Confidence intervals and significance tests."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, t, ttest_ind, ttest_rel

from flowers.evaluation.predictions import Predictions


def wilson_interval(correct: int, n: int) -> list[float]:
    """Return Wilson's 95 % interval [low, high] of the proportion `correct` / `n`; `n` is at least 1."""
    low, high = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return [float(low), float(high)]


def mcnemar(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Compare two models on the same images with McNemar's exact test.

    Returns:
        `difference`: accuracy of the second minus that of the first. `interval`: its 95 % interval, that of a mean of
        paired differences. `gained` and `lost`: the paths of the images that only the second, or only the first, gets
        right. `p`: the probability of a division of these images at least as uneven if both models are equally good.
        `n`: the number of images.

    Raises:
        ValueError: The predictions are of different images or classes.
    """
    if (list(first.paths), first.labels.tolist()) != (list(second.paths), second.labels.tolist()):
        raise ValueError("the runs were scored on different images: compare runs with the same split.csv")
    if list(first.classes) != list(second.classes):
        raise ValueError("the runs have different classes: compare runs with the same classes")
    before, after = first.correct.numpy(), second.correct.numpy()
    gained, lost, n = int((after & ~before).sum()), int((before & ~after).sum()), len(first)
    difference = (gained - lost) / n
    half_width = 1.959964 * np.sqrt(((gained + lost) / n - difference**2) / n)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {
        "difference": difference,
        "interval": [float(difference - half_width), float(difference + half_width)],
        "gained": [path for path, was, now in zip(first.paths, before, after, strict=True) if now and not was],
        "lost": [path for path, was, now in zip(first.paths, before, after, strict=True) if was and not now],
        "p": float(p),
        "n": n,
    }


def mcnemar_verdict(comparison: Mapping[str, Any]) -> str:
    """Put the result of `mcnemar` into words, at the 5 % level."""
    if comparison["p"] >= 0.05:
        return f"no significant difference (McNemar's p = {comparison['p']:.3g})"
    word = "better" if comparison["difference"] > 0 else "worse"
    return f"significantly {word} (McNemar's p = {comparison['p']:.3g})"


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation; the latter is NaN for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def mean_interval(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval [low, high] of the mean of at least two values, by Student's t distribution.

    Cross-validation folds share training images, so their interval is only approximate.
    """
    mean, deviation = mean_std(values)
    half_width = float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return [mean - half_width, mean + half_width]


class RunGroup(NamedTuple):
    """Runs that differ in seed or fold only: their common overrides, and the accuracy for each seed and fold."""

    name: str
    accuracies: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return mean_std(list(self.accuracies.values()))[0]


def group_verdict(groups: Sequence[RunGroup]) -> str:
    """Say whether the best group differs from the second best, by a t-test over their runs at the 5 % level.

    Args:
        groups: Best mean first. The t-test is paired if both groups have the same seeds and folds, else Welch's.
    """
    if len(groups) < 2:
        return "one group of runs: nothing to compare"
    best, second = groups[:2]
    if min(len(best.accuracies), len(second.accuracies)) < 2:
        return "too few runs to compare the best with the second best: train at least two seeds of each"
    shared = sorted(best.accuracies.keys() & second.accuracies.keys())
    if len(shared) == len(best.accuracies) == len(second.accuracies):
        first, other = ([group.accuracies[key] for key in shared] for group in (best, second))
        constant = len({round(a - b, 12) for a, b in zip(first, other, strict=True)}) == 1  # the t-test needs a spread
        p = float(first == other) if constant else float(ttest_rel(first, other).pvalue)
        test = "paired t-test"
    else:
        p = float(ttest_ind(list(best.accuracies.values()), list(second.accuracies.values()), equal_var=False).pvalue)
        test = "Welch's t-test"
    if p < 0.05:
        return f"the best is significantly better than the second best ({test}, p = {p:.3g})"
    return f"no significant difference between the best and the second best ({test}, p = {p:.3g})"
