"""Intervals and significance tests."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, ttest_ind, ttest_rel

from flowers.evaluation.predictions import Predictions


def mcnemar(first: Predictions, second: Predictions) -> dict[str, Any]:
    """The difference in accuracy, second less first, with its 95 % interval, and McNemar's exact test.

    The interval is that of a mean of paired differences. `p` is the probability of a split at least so uneven of the
    photos that changed sides, were both equally good.

    Raises ValueError where they are not of the same photos.
    """
    if (list(first.paths), first.labels.tolist()) != (list(second.paths), second.labels.tolist()):
        raise ValueError("they did not judge the same photos: wanted runs on one split (the same split.csv)")
    if list(first.classes) != list(second.classes):
        raise ValueError("their classes differ")
    before, after = first.correct.numpy(), second.correct.numpy()
    gained, lost, n = int((after & ~before).sum()), int((before & ~after).sum()), len(first)
    difference = (gained - lost) / n
    half = 1.959964 * np.sqrt(((gained + lost) / n - difference**2) / n)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {
        "difference": difference,
        "interval": [float(difference - half), float(difference + half)],
        "gained": [path for path, was, now in zip(first.paths, before, after, strict=True) if now and not was],
        "lost": [path for path, was, now in zip(first.paths, before, after, strict=True) if was and not now],
        "p": float(p),
        "n": n,
    }


def mcnemar_verdict(compared: Mapping[str, Any]) -> str:
    """In words, at the level of 5 %."""
    if compared["p"] >= 0.05:
        return f"no difference shown (McNemar's p = {compared['p']:.3g})"
    word = "better" if compared["difference"] > 0 else "worse"
    return f"{word} by more than chance (McNemar's p = {compared['p']:.3g})"


def mean_std(accuracies: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample) of one recipe's runs over seeds or folds."""
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else float("nan")


def wilson_interval(correct: int, n: int) -> list[float]:
    """Wilson's 95 % interval of an accuracy."""
    low, high = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return [float(low), float(high)]


class RunGroup(NamedTuple):
    """Its overrides, and the accuracy of each of its runs by the overrides of seed and fold."""

    name: str
    accuracies: dict[str, float]

    @property
    def mean(self) -> float:
        """Over its runs."""
        return mean_std(list(self.accuracies.values()))[0]


def group_verdict(recipes: list[RunGroup]) -> str:
    """Whether the best differs from the next by more than chance, by a t-test over their runs at the level of 5 %."""
    if len(recipes) < 2:
        return "one recipe: nothing to compare it with"
    best, second = recipes[:2]
    if min(len(best.accuracies), len(second.accuracies)) < 2:
        return "the best and the next have too few runs to tell them apart: give two seeds or more"
    shared = sorted(best.accuracies.keys() & second.accuracies.keys())
    if len(shared) == len(best.accuracies) == len(second.accuracies):  # the same seeds or folds: paired
        first, other = ([recipe.accuracies[draw] for draw in shared] for recipe in (best, second))
        same = len({round(a - b, 12) for a, b in zip(first, other, strict=True)}) == 1
        p = float(first == other) if same else float(ttest_rel(first, other).pvalue)
        name = "paired t-test"
    else:
        p = float(ttest_ind(list(best.accuracies.values()), list(second.accuracies.values()), equal_var=False).pvalue)
        name = "Welch's t-test"
    if p < 0.05:
        return f"the best is better than the next ({name}, p = {p:.3g})"
    return f"no difference shown between the best and the next ({name}, p = {p:.3g})"
