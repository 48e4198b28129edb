"""Metrics of a set of predictions, each with its 95 % interval where it has one.

To add a metric, add one entry to `METRICS`, or register a `Metric` of another package as an entry point of
`flowers.metrics`: the terminal table, report.html, the JSON of `flowers.evaluate` and the HPARAMS tab of TensorBoard
iterate over `all_metrics`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from flowers.evaluation.calibration import (
    CALIBRATION_BINS,
    choose_temperature,
    coverage_curve,
    cross_fitted_probabilities,
    reliability_bins,
)
from flowers.evaluation.class_curves import class_areas, class_curves
from flowers.evaluation.confusion import MATRIX_CLASSES, ConfusionCells, count_confusion
from flowers.evaluation.statistics import average_interval, wilson_bounds, wilson_interval
from flowers.runs.predictions import Predictions
from flowers.settings.registry import load_parts

_MACRO = ("precision", "recall", "f1")

Interval = list[float]  # [low, high]


class MetricInputs:
    """What metrics are computed from, computed once for all of them."""

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions
        self.labels, self.predicted = predictions.labels, predictions.predicted
        self.class_count = len(predictions.classes)

    @cached_property
    def correct(self) -> int:
        """The number of correct predictions."""
        return int(self.predictions.correct.sum())

    @cached_property
    def top2_correct(self) -> int:
        """The number of images whose true class is among the two most likely ones."""
        likely = self.predictions.logits.topk(min(2, self.class_count)).indices
        return int((likely == self.labels[:, None]).any(1).sum())

    @cached_property
    def confusion(self) -> ConfusionCells:
        """The confusion matrix."""
        return count_confusion(self.predictions)

    @cached_property
    def class_totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each class the images that are predicted right, are of the class, and are predicted as it: 3 x (C,)."""
        true, predicted, counts = map(torch.from_numpy, self.confusion[:3])
        empty, is_right = counts.new_zeros(self.class_count), true == predicted
        correct = empty.index_add(0, true[is_right], counts[is_right])
        return correct, empty.index_add(0, true, counts), empty.index_add(0, predicted, counts)

    @cached_property
    def averages(self) -> Tensor:
        """Macro precision, recall and F1, then the F1 of each class: float64 (3 + C,).

        The averages are over the classes that have images. As in torchmetrics, quotients are in float32, and the
        precision of a class that is never predicted counts as 0.
        """
        correct, per_class, per_answer = (total.float() for total in self.class_totals)
        has_images = per_class > 0
        scores = [
            torch.where(has_images, right / total.clamp(min=1), 0)
            for right, total in ((correct, per_answer), (correct, per_class), (2 * correct, per_class + per_answer))
        ]
        macro = torch.stack([(score / has_images.sum()).sum() for score in scores]).clamp(max=1)  # rounding
        return torch.cat([macro, scores[-1]]).double()

    @cached_property
    def average_intervals(self) -> NDArray[np.float64]:
        """The 95 % intervals of `averages`: (2, 3 + C).

        An F1 is 2 J / (1 + J), where J is the share of the right answers among the images that are of the class or are
        predicted as it: its limits are those of Wilson for J. Those of an average are those of `average_interval`. A
        mistake lowers the F1 of two classes at once: at most, this doubles the variance of their average.
        """
        correct, per_class, per_answer = (total.double().numpy() for total in self.class_totals)
        shares = np.stack(wilson_bounds(correct, per_class + per_answer - correct))
        f1 = 2 * shares / (1 + shares)
        counted = per_class > 0
        macro = []
        for hits, sizes, bounds, spread in (
            (correct, per_answer, np.stack(wilson_bounds(correct, per_answer)), 1),
            (correct, per_class, np.stack(wilson_bounds(correct, per_class)), 1),
            (correct, (per_class + per_answer) / 2, f1, 2),
        ):
            values = hits / sizes.clip(0.5)
            macro.append(average_interval(values[counted], bounds[:, counted], sizes[counted], spread))
        return np.concatenate([np.array(macro).T, f1], axis=1)

    @cached_property
    def calibrated(self) -> Tensor:
        """Probabilities (N, C), calibrated by temperatures fitted to other images if that makes them better."""
        return (
            cross_fitted_probabilities(self.predictions) if self.temperature != 1 else self.predictions.probabilities()
        )

    @cached_property
    def temperature(self) -> float:
        """The temperature for the images; see `choose_temperature`."""
        return choose_temperature(self.predictions)

    def calibration_error(self, probabilities: Tensor) -> float:
        """Return the expected calibration error of probabilities (N, C), from 0 to 1."""
        return multiclass_calibration_error(
            probabilities, self.labels, self.class_count, n_bins=CALIBRATION_BINS, norm="l1"
        ).item()


@dataclass(frozen=True)
class Metric:
    """A number that says how good predictions are.

    Args:
        name: The key in JSON and in TensorBoard.
        label: The name in tables.
        value: Computes it.
        interval: Computes its 95 % interval; None for a metric without one.
        digits: Decimals in tables.
        is_macro: Whether it is a mean over the classes, in which a rare class counts as much as others.
    """

    name: str
    label: str
    value: Callable[[MetricInputs], float]
    interval: Callable[[MetricInputs], Interval] | None = None
    digits: int = 4
    is_macro: bool = False


def _macro_metric(index: int) -> Metric:
    return Metric(
        f"macro_{_MACRO[index]}",
        f"{_MACRO[index].replace('f1', 'F1')}, mean of classes",
        lambda inputs: inputs.averages[index].item(),
        lambda inputs: inputs.average_intervals[:, index].tolist(),
        is_macro=True,
    )


METRICS: list[Metric] = [
    Metric(
        "accuracy",
        "accuracy",
        lambda inputs: inputs.correct / len(inputs.predictions),
        lambda inputs: wilson_interval(inputs.correct, len(inputs.predictions)),
        digits=6,
    ),
    Metric(
        "top2",
        "top-2 accuracy",
        lambda inputs: inputs.top2_correct / len(inputs.predictions),
        lambda inputs: wilson_interval(inputs.top2_correct, len(inputs.predictions)),
        digits=6,
    ),
    *map(_macro_metric, range(len(_MACRO))),
    Metric("loss", "loss", lambda inputs: cross_entropy(inputs.predictions.logits, inputs.labels).item()),
    Metric(
        "calibration_error",
        "calibration error",
        lambda inputs: inputs.calibration_error(inputs.predictions.probabilities()),
    ),
    Metric(
        "calibrated_error",
        "calibration error, calibrated",
        lambda inputs: inputs.calibration_error(inputs.calibrated),
    ),
]


def all_metrics() -> list[Metric]:
    """Return `METRICS`, and those that other packages register.

    Raises:
        ValueError: One of these cannot be imported, or has the name of another one.
    """
    return [*METRICS, *load_parts("metrics", lambda metric: metric.name, {each.name for each in METRICS})]


IMBALANCE = 3  # images of the largest class over those of the smallest one, above which averages over classes lead


def is_imbalanced(scores: Mapping[str, Any]) -> bool:
    """Return whether the classes that were scored differ by more than 3:1; a class without images does not count."""
    counts: list[int] = [row["n"] for row in scores["classes"].values() if row["n"]]
    return max(counts) > IMBALANCE * min(counts)


def sorted_metrics(scores: Mapping[str, Any]) -> list[Metric]:
    """Return all metrics, those that are means over the classes first if the classes are imbalanced."""
    return sorted(all_metrics(), key=lambda metric: is_imbalanced(scores) and not metric.is_macro)


def metric_values(predictions: Predictions) -> dict[str, float]:
    """Return the value of each metric by name, without its interval."""
    inputs = MetricInputs(predictions)
    return {metric.name: metric.value(inputs) for metric in all_metrics()}


def score(predictions: Predictions) -> dict[str, Any]:
    """Return the accuracy, the mean cross-entropy loss, the number of images `n`, and the accuracy's 95 % interval."""
    correct = int(predictions.correct.sum())
    return {
        "accuracy": correct / len(predictions),
        "loss": cross_entropy(predictions.logits, predictions.labels).item(),
        "n": len(predictions),
        "interval": wilson_interval(correct, len(predictions)),
    }


def score_line(split: str, scores: Mapping[str, Any]) -> str:
    """Format scores: `val accuracy 0.9470 (95 % interval 0.9254 to 0.9626), loss 0.1710, n = 570`."""
    low, high = scores["interval"]
    return (
        f"{split} accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"loss {scores['loss']:.4f}, n = {scores['n']}"
    )


def compute_metrics(predictions: Predictions) -> dict[str, Any]:
    """Return everything that is known about predictions, as plain Python that JSON can hold.

    Intervals are `[low, high]` at 95 %; docs/evaluation.md says which. What cannot be known is None: recall and F1 of
    a class without images, and precision of a class that is never predicted.

    Returns:
        The keys of `score`; `metrics`, the value and the interval of each metric; `classes`, with n,
        precision, recall, F1, `auroc` and `average_precision` of each class; `curves`, the result of `class_curves`;
        `confusion`, the matrix with one row per true class, None for more than 40 classes; `confused_pairs`, its cells
        off the diagonal that are not 0, most images first; `calibration`, with
        the temperature and the bins of the reliability diagram; and `coverage`, the accuracy if only confident answers
        count.
    """
    inputs = MetricInputs(predictions)
    areas = class_areas(predictions)
    unknown = {"value": None, "interval": None}
    correct, per_class, per_answer = (total.tolist() for total in inputs.class_totals)
    return {
        **score(predictions),
        "metrics": {
            metric.name: {
                "value": metric.value(inputs),
                "interval": metric.interval(inputs) if metric.interval else None,
            }
            for metric in all_metrics()
        },
        "classes": {
            label: {
                "n": per_class[index],
                "precision": _proportion(correct[index], per_answer[index]),
                "recall": _proportion(correct[index], per_class[index]),
                "f1": {
                    "value": inputs.averages[len(_MACRO) + index].item(),
                    "interval": inputs.average_intervals[:, len(_MACRO) + index].tolist(),
                }
                if per_class[index]
                else unknown,
                **(areas[index] or {"auroc": unknown, "average_precision": unknown}),
            }
            for index, label in enumerate(predictions.classes)
        },
        "curves": class_curves(predictions, areas),
        "confusion": inputs.confusion.matrix() if inputs.class_count <= MATRIX_CLASSES else None,
        "confused_pairs": inputs.confusion.confused_pairs(predictions.classes),
        "calibration": {
            "temperature": inputs.temperature,
            "bins": {
                "before": reliability_bins(predictions.probabilities(), predictions.correct),
                "after": reliability_bins(inputs.calibrated, predictions.correct),
            },
        },
        "coverage": coverage_curve(inputs.calibrated, predictions.correct),
    }


def _proportion(correct: int, n: int) -> dict[str, Any]:
    """Return a proportion and its Wilson interval, both None if `n` is 0."""
    return {"value": correct / n if n else None, "interval": wilson_interval(correct, n) if n else None}
