"""How well a run rejects images of none of its classes."""

from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from flowers.evaluation.class_curves import auroc_interval
from flowers.evaluation.statistics import wilson_interval
from flowers.runs.rejection import Rejection, rejection_threshold


def cross_fitted_rejections(scores: Tensor, share: float) -> Tensor | None:
    """Return whether each image is rejected (N,), by a threshold that comes from the other half of the scores (N,).

    None if a half has too few images for the share.
    """
    halves = torch.arange(len(scores)) % 2
    halves = halves[torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))]
    rejected = torch.zeros(len(scores), dtype=torch.bool)
    for half in (0, 1):
        try:
            rejected[halves == half] = scores[halves == half] > rejection_threshold(scores[halves != half], share)
        except ValueError:
            return None
    return rejected


def rejection_scores(rejection: Rejection, strangers: Tensor | None = None) -> dict[str, Any]:
    """Return how well images are rejected, as plain Python that JSON can hold.

    Args:
        rejection: Of the run.
        strangers: The scores (N,) of images of none of the classes, if there are any.

    Returns:
        `reject` and `threshold`; `false_rejections`, of the validation images, see `cross_fitted_rejections`, None if
        there are too few; and with strangers `auroc`, the chance that a stranger is stranger than a validation image,
        and `rejected_strangers`. The last three have `value`, `interval` (95 %) and `n`.
    """
    val, threshold = rejection.val_scores, rejection.threshold
    rejected = cross_fitted_rejections(val, rejection.share)
    scores = {
        "reject": rejection.share,
        "threshold": threshold,
        "false_rejections": None if rejected is None else _share(rejected),
    }
    if strangers is not None:
        scores |= {"auroc": auroc(val, strangers), "rejected_strangers": _share(strangers > threshold)}
    return scores


def auroc(known: Tensor, strangers: Tensor) -> dict[str, Any]:
    """Return the area under the ROC curve of two groups of scores, with its `auroc_interval`."""
    area = float(mannwhitneyu(strangers.numpy(), known.numpy()).statistic) / (len(known) * len(strangers))
    return {"value": area, "interval": auroc_interval(area, len(strangers), len(known)), "n": len(strangers)}


def _share(is_rejected: Tensor) -> dict[str, Any]:
    count, n = int(is_rejected.sum()), len(is_rejected)
    return {"value": count / n, "interval": wilson_interval(count, n), "n": n}
