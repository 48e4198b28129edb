"""How good predictions are beyond their accuracy: each number with its 95 % interval where it has one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from flowers import calibration
from flowers.predictions import Predictions
from flowers.results import interval, score

_RESAMPLES, _BINS = 1000, 15


def detailed(predictions: Predictions) -> dict[str, Any]:
    """All that `results.score` says, and more, as plain Python; intervals are `[low, high]`.

    Proportions have Wilson's interval; F1 and what is averaged over classes have the bootstrap's percentiles, which
    have no width where there is no mistake. The confusion matrix has a row a true class. Probabilities are calibrated,
    each by a temperature fitted to others.
    """
    labels, predicted = predictions.labels, predictions.predicted
    names, number = list(predictions.classes), len(predictions.classes)
    confusion = multiclass_confusion_matrix(predicted, labels, number)
    hits, of_class, of_answer = confusion.diag().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist()
    averaged = _averaged(predicted, labels, number)
    low, high = _bootstrap(predicted, labels, number).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)

    def measured(place: int) -> dict[str, Any]:
        return {"value": averaged[place].item(), "interval": [low[place].item(), high[place].item()]}

    return {
        **score(predictions),
        "top2": _top2(predictions),
        "macro": {name: measured(place) for place, name in enumerate(("precision", "recall", "f1"))},
        "classes": {
            name: {
                "n": of_class[place],
                "precision": _proportion(hits[place], of_answer[place]),
                "recall": _proportion(hits[place], of_class[place]),
                "f1": measured(3 + place),
            }
            for place, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
        "calibration": _calibration(predictions),
        "coverage": _coverage(predictions),
    }


def reliability(probabilities: Tensor, correct: Tensor) -> list[dict[str, float]]:
    """Photos by the probability (N, C) of their answer, in bins of equal width: mean, share correct (N,), number."""
    confidence = probabilities.amax(1)
    place = (confidence * _BINS).long().clamp(max=_BINS - 1)
    return [
        {
            "confidence": confidence[place == number].mean().item(),
            "accuracy": correct[place == number].double().mean().item(),
            "n": int((place == number).sum()),
        }
        for number in range(_BINS)
        if (place == number).any()
    ]


def _proportion(hits: int, n: int) -> dict[str, Any]:
    """None where there was nothing to be right about."""
    return {"value": hits / n if n else None, "interval": interval(hits, n) if n else None}


def _top2(predictions: Predictions) -> dict[str, Any]:
    number = len(predictions.classes)
    share = multiclass_accuracy(
        predictions.logits, predictions.labels, number, average="micro", top_k=2, validate_args=False
    )
    return _proportion(round(share.item() * len(predictions)), len(predictions))


def _averaged(predicted: Tensor, labels: Tensor, number: int) -> Tensor:
    """Macro precision, recall and F1, then the F1 of each class: (3 + C,)."""

    def measure(metric: Callable[..., Tensor], average: str) -> Tensor:
        return metric(predicted, labels, number, average=average, validate_args=False).double().reshape(-1)

    macros = [measure(metric, "macro") for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)]
    return torch.cat([*macros, measure(multiclass_f1_score, "none")])


def _bootstrap(predicted: Tensor, labels: Tensor, number: int) -> Tensor:
    """`_averaged` of resamples: (R, 3 + C)."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(labels), (_RESAMPLES, len(labels)), generator=generator)
    return torch.stack([_averaged(predicted[draw], labels[draw], number) for draw in draws])


def _calibration(predictions: Predictions) -> dict[str, Any]:
    versions = {"before": predictions.probabilities(), "after": calibration.crossfitted(predictions)}
    error = {
        name: multiclass_calibration_error(
            probabilities, predictions.labels, len(predictions.classes), n_bins=_BINS, norm="l1"
        ).item()
        for name, probabilities in versions.items()
    }
    return {
        "temperature": calibration.temperature(predictions.logits, predictions.labels),
        "error": error,
        "bins": {name: reliability(each, predictions.correct) for name, each in versions.items()},
    }


def _coverage(predictions: Predictions) -> list[dict[str, float]]:
    """Answering the surest share of the photos and "don't know" for the rest: the accuracy of the answers, and from
    which probability on they are given.
    """
    confidence, order = calibration.crossfitted(predictions).amax(1).sort(descending=True)
    right = predictions.correct[order].cumsum(0)
    answered = [max(1, round(len(order) * share / 100)) for share in range(2, 101, 2)]
    return [
        {
            "coverage": n / len(order),
            "accuracy": right[n - 1].item() / n,
            "confidence": confidence[n - 1].item(),
        }
        for n in answered
    ]
