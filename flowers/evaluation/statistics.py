"""Confidence intervals and significance tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, t, ttest_ind

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
    return {
        "difference": difference,
        "interval": [float(difference - half_width), float(difference + half_width)],
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
        return f"no significant difference ({test} = {comparison['p']:.3g})"
    word = "better" if comparison["difference"] > 0 else "worse"
    return f"significantly {word} ({test} = {comparison['p']:.3g})"


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


def mean_interval(values: Sequence[float], overlap: float = 0.0) -> list[float]:
    """Return the 95 % interval [low, high] of the mean of at least two values, by Student's t distribution.

    Args:
        values: One value for each run.
        overlap: The number of test images over that of training images, if the runs are folds of a cross-validation:
            they share training images, and the variance of their mean is larger (Nadeau and Bengio, Machine Learning
            2003, 52:239-281). 0 for independent runs.
    """
    mean, deviation = mean_std(values)
    half_width = float(t.ppf(0.975, len(values) - 1)) * deviation * (1 / len(values) + overlap) ** 0.5
    return [mean - half_width, mean + half_width]


def paired_p(differences: Sequence[float], overlap: float = 0.0) -> float:
    """Return the p value of the t-test that the mean of at least two paired differences is 0.

    Args:
        differences: One for each pair of runs.
        overlap: See `mean_interval`.
    """
    mean, deviation = mean_std(differences)
    if deviation < 1e-12:  # the t-test needs a spread
        return float(abs(mean) < 1e-12)
    statistic = mean / (deviation * (1 / len(differences) + overlap) ** 0.5)
    return 2 * float(t.sf(abs(statistic), len(differences) - 1))


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
    """

    name: str
    accuracies: dict[str, float]
    folders: dict[str, Path] = {}  # noqa: RUF012 (a NamedTuple copies no default, and nothing changes it)

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return mean_std(list(self.accuracies.values()))[0]

    @property
    def overlap(self) -> float:
        """The `overlap` of `mean_interval`: 1 / (k - 1) for k folds, 0 for seeds."""
        folds = {part for key in self.accuracies for part in key.split() if part.startswith("data.fold=")}
        return 1 / (len(folds) - 1) if len(folds) > 1 else 0.0


def group_verdict(groups: Sequence[RunGroup]) -> str:
    """Say whether the best group differs from the second best, by a t-test over their runs at the 5 % level.

    Args:
        groups: Best mean first. The t-test is paired if both groups have the same seeds and folds, else Welch's. Over
            folds, it is the corrected one of Nadeau and Bengio.
    """
    if len(groups) < 2:
        return "one group of runs: nothing to compare"
    best, second = groups[:2]
    if min(len(best.accuracies), len(second.accuracies)) < 2:
        return "too few runs to compare the best with the second best: train at least two seeds of each"
    shared = sorted(best.accuracies.keys() & second.accuracies.keys())
    if len(shared) == len(best.accuracies) == len(second.accuracies):
        p = paired_p([best.accuracies[key] - second.accuracies[key] for key in shared], best.overlap)
        test = "paired t-test, corrected for folds that share training images" if best.overlap else "paired t-test"
    else:
        p = float(ttest_ind(list(best.accuracies.values()), list(second.accuracies.values()), equal_var=False).pvalue)
        test = "Welch's t-test"
    if p < 0.05:
        return f"the best is significantly better than the second best ({test}, p = {p:.3g})"
    return f"no significant difference between the best and the second best ({test}, p = {p:.3g})"
