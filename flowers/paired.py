"""Two runs on the same photos: which of them is better, and whether by more than chance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from flowers import predictions
from flowers.predictions import FOLDER, Predictions


def of_run(run_dir: Path, split: str) -> Predictions:
    """What a run said of a split. Raises ValueError where it has not been trained to its end, or has no such split."""
    path = run_dir / FOLDER / f"{split}.csv"
    if not path.is_file():
        raise ValueError(f"{run_dir} has no {FOLDER}/{split}.csv: train the run to its end, or choose another split=")
    return predictions.load(path)


def compare(first: Predictions, second: Predictions) -> dict[str, Any]:
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


def verdict(compared: Mapping[str, Any]) -> str:
    """In words, at the level of 5 %."""
    if compared["p"] >= 0.05:
        return f"no difference shown (McNemar's p = {compared['p']:.3g})"
    word = "better" if compared["difference"] > 0 else "worse"
    return f"{word} by more than chance (McNemar's p = {compared['p']:.3g})"


def spread(accuracies: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample) of one recipe's runs over seeds or folds."""
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else float("nan")
