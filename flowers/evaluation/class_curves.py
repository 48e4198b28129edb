"""ROC and precision-recall curves of each class against all others, and the areas under them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from flowers.evaluation.statistics import score_interval
from flowers.runs.predictions import Predictions

CURVE_CLASSES = 10  # more curves in one figure cannot be told apart

_CURVE_POINTS = 200


def class_areas(predictions: Predictions) -> list[dict[str, Any] | None]:
    """Return the areas under the curves of each class; None for a class without images, or without images of others.

    Only the ranks of the images of a class count. One sort for each class finds them: 1,000 classes of 50,000 images
    need no matrix of ranks.

    Returns:
        For each class `auroc`, the area under its ROC curve, and `average_precision`, that under its precision-recall
        curve in steps, each with `value` and `interval`. The intervals are those of `auroc_interval` and
        `average_precision_interval`.
    """
    probabilities, labels = predictions.probabilities().numpy(), predictions.labels.numpy()
    areas: list[dict[str, Any] | None] = []
    for index in range(len(predictions.classes)):
        scores, is_positive = np.ascontiguousarray(probabilities[:, index]), labels == index
        positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
        if not positives or not negatives:
            areas.append(None)
            continue
        auroc, precision = _areas(np.sort(scores), np.sort(scores[is_positive]))
        areas.append(
            {
                "auroc": {"value": auroc, "interval": auroc_interval(auroc, positives, negatives)},
                "average_precision": {
                    "value": precision,
                    "interval": average_precision_interval(precision, positives),
                },
            }
        )
    return areas


def _areas(scores: NDArray[np.float64], positives: NDArray[np.float64]) -> tuple[float, float]:
    """Return the area under the ROC curve, and the average precision.

    Args:
        scores: The scores (N,) of all images, sorted.
        positives: Those of the images of the class, sorted.
    """
    below, up_to = np.searchsorted(scores, positives, "left"), np.searchsorted(scores, positives, "right")
    hits_below, hits_up_to = (np.searchsorted(positives, positives, side) for side in ("left", "right"))
    pairs = len(positives) * (len(scores) - len(positives))
    ranked_right = (below - hits_below).sum() + (up_to - hits_up_to).sum()  # twice; a tie counts once
    precisions = (len(positives) - hits_below) / (len(scores) - below)
    return float(ranked_right / 2 / pairs), float(precisions.mean())


def auroc_interval(value: float, positives: int, negatives: int) -> list[float]:
    """Return the 95 % interval [low, high] of an area under a ROC curve, by method 5 of Newcombe.

    (Statistics in Medicine 2006, 25:559-573.) As with the interval of Wilson, the standard error is that of the limit
    and not of the estimate. The interval of an area of 1 has a width, which that of DeLong has not.
    """
    equal = (positives + negatives) / 2 - 1

    def variance(area: float) -> float:
        pairs = 1 + equal * (1 - area) / (2 - area) + equal * area / (1 + area)
        return area * (1 - area) * pairs / (positives * negatives)

    return score_interval(value, variance)


def average_precision_interval(value: float, positives: int) -> list[float]:
    """Return the 95 % interval [low, high] of an average precision, with the variance of a proportion of `positives`.

    That is the variance of the binomial interval of Boyd, Eng and Page (ECML PKDD 2013), at the limit as in the
    interval of Wilson.
    """
    return score_interval(value, lambda area: area * (1 - area) / positives)


def class_curves(predictions: Predictions, areas: Sequence[Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Return the curves of the classes, of at most `CURVE_CLASSES` with the least average precision.

    Args:
        predictions: The predictions.
        areas: Their `class_areas`.

    Returns:
        For each class, the worst first: `roc` as points (false positive rate, recall), and `precision_recall` as points
        (recall, precision), at up to 200 recalls.
    """
    known = [(row["average_precision"]["value"], index) for index, row in enumerate(areas) if row]
    probabilities, curves = predictions.probabilities(), {}
    for _, index in sorted(known)[:CURVE_CLASSES]:
        scores, is_positive = probabilities[:, index], (predictions.labels == index).long()
        false_rate, recall, _ = binary_roc(scores, is_positive)
        precision, recall_down, _ = binary_precision_recall_curve(scores, is_positive)
        curves[predictions.classes[index]] = {
            "roc": [*_at_recalls(recall, false_rate, swap=True), [1.0, 1.0]],
            "precision_recall": _at_recalls(recall_down.flip(0), precision.flip(0)),
        }
    return curves


def _at_recalls(recall: torch.Tensor, other: torch.Tensor, swap: bool = False) -> list[list[float]]:
    """Return the points of a curve at which it first reaches each of 200 evenly spaced recalls."""
    levels = torch.linspace(0, 1, _CURVE_POINTS + 1, dtype=recall.dtype)
    picked = torch.searchsorted(recall.contiguous(), levels).clamp(max=len(recall) - 1)
    picked = torch.tensor(sorted({*picked.tolist()}))
    columns = (other[picked], recall[picked]) if swap else (recall[picked], other[picked])
    rows: list[list[float]] = torch.stack(columns, 1).double().numpy().round(6).tolist()
    return rows
