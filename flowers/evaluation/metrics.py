"""Metrics of a set of predictions, each with its 95 % interval."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from flowers.evaluation.calibration import (
    CALIBRATION_BINS,
    coverage_curve,
    cross_fitted_probabilities,
    fit_temperature,
    reliability_bins,
)
from flowers.evaluation.predictions import Predictions
from flowers.evaluation.statistics import wilson_interval


def score(predictions: Predictions) -> dict[str, Any]:
    """Accuracy, mean cross-entropy loss, number of photos, and the accuracy's 95 % interval."""
    correct = int(predictions.correct.sum())
    return {
        "accuracy": correct / len(predictions),
        "loss": cross_entropy(predictions.logits, predictions.labels).item(),
        "n": len(predictions),
        "interval": wilson_interval(correct, len(predictions)),
    }


def score_line(split: str, scored: Mapping[str, Any]) -> str:
    """A score for people: `val accuracy 0.9470 (95 % interval 0.9254 to 0.9626), loss 0.1710, n = 570`."""
    low, high = scored["interval"]
    return (
        f"{split} accuracy {scored['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"loss {scored['loss']:.4f}, n = {scored['n']}"
    )


_BOOTSTRAP_RESAMPLES = 1000


def compute_metrics(predictions: Predictions) -> dict[str, Any]:
    """All that `results.score` says, and more, as plain Python; intervals are `[low, high]`.

    Proportions have Wilson's interval; F1 and what is averaged over classes have the bootstrap's percentiles, which
    have no width where there is no mistake. The confusion matrix has a row a true class. Probabilities are calibrated,
    each by a temperature fitted to others.
    """
    labels, predicted = predictions.labels, predictions.predicted
    names, number = list(predictions.classes), len(predictions.classes)
    confusion = multiclass_confusion_matrix(predicted, labels, number)
    hits, of_class, of_answer = confusion.diag().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist()
    averaged = _macro_averages(predicted, labels, number)
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
        "coverage": coverage_curve(predictions),
    }


def _proportion(hits: int, n: int) -> dict[str, Any]:
    """None where there was nothing to be right about."""
    return {"value": hits / n if n else None, "interval": wilson_interval(hits, n) if n else None}


def _top2(predictions: Predictions) -> dict[str, Any]:
    number = len(predictions.classes)
    share = multiclass_accuracy(
        predictions.logits, predictions.labels, number, average="micro", top_k=2, validate_args=False
    )
    return _proportion(round(share.item() * len(predictions)), len(predictions))


def _macro_averages(predicted: Tensor, labels: Tensor, number: int) -> Tensor:
    """Macro precision, recall and F1, then the F1 of each class: (3 + C,)."""

    def measure(metric: Callable[..., Tensor], average: str) -> Tensor:
        return metric(predicted, labels, number, average=average, validate_args=False).double().reshape(-1)

    macros = [measure(metric, "macro") for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)]
    return torch.cat([*macros, measure(multiclass_f1_score, "none")])


def _bootstrap(predicted: Tensor, labels: Tensor, number: int) -> Tensor:
    """`_averaged` of resamples: (R, 3 + C)."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(labels), (_BOOTSTRAP_RESAMPLES, len(labels)), generator=generator)
    return torch.stack([_macro_averages(predicted[draw], labels[draw], number) for draw in draws])


def _calibration(predictions: Predictions) -> dict[str, Any]:
    versions = {"before": predictions.probabilities(), "after": cross_fitted_probabilities(predictions)}
    error = {
        name: multiclass_calibration_error(
            probabilities, predictions.labels, len(predictions.classes), n_bins=CALIBRATION_BINS, norm="l1"
        ).item()
        for name, probabilities in versions.items()
    }
    return {
        "temperature": fit_temperature(predictions.logits, predictions.labels),
        "error": error,
        "bins": {name: reliability_bins(each, predictions.correct) for name, each in versions.items()},
    }
