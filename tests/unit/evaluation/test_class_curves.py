import io

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from flowers.evaluation.class_curves import (
    CURVE_CLASSES,
    auroc_interval,
    average_precision_interval,
    class_areas,
    class_curves,
)
from flowers.evaluation.figures import figure_to_svg, plot_class_curves
from flowers.evaluation.metrics import compute_metrics, is_imbalanced, sorted_metrics
from flowers.evaluation.statistics import wilson_interval
from flowers.runs.predictions import Predictions


def predict(labels: list[int], classes: int, digits: int = 1) -> Predictions:
    """Predictions that are right more often than not, with ties."""
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor(labels)
    logits = torch.randn(len(labels), classes, generator=generator).double()
    logits[torch.arange(len(labels)), true] += 1
    names = [f"class {index}" for index in range(classes)]
    return Predictions(
        [f"{index}.png" for index in range(len(labels))], true, (logits * digits).round() / digits, names
    )


def test_class_areas_are_those_of_scikit_learn_with_ties_and_none_without_images():
    predictions = predict([0] * 30 + [1] * 50 + [2] * 4, classes=4)
    probabilities = predictions.probabilities().numpy()
    assert len(np.unique(probabilities[:, 2])) < 84
    for index, row in enumerate(class_areas(predictions)[:3]):
        assert row is not None
        truth = predictions.labels.numpy() == index
        assert row["auroc"]["value"] == pytest.approx(roc_auc_score(truth, probabilities[:, index]))
        expected = average_precision_score(truth, probabilities[:, index])
        assert row["average_precision"]["value"] == pytest.approx(expected)
        for area in row.values():
            assert area["interval"][0] <= area["value"] <= area["interval"][1]
    assert class_areas(predictions)[3] is None
    assert class_areas(predict([0, 0], classes=2)) == [None, None]


@pytest.mark.parametrize("hits", [0, 7, 30])
def test_interval_of_an_average_precision_is_wilsons(hits: int):
    assert average_precision_interval(hits / 30, 30) == pytest.approx(wilson_interval(hits, 30), abs=1e-6)


@pytest.mark.parametrize("value", [0.6, 0.95, 1.0])
def test_limits_of_an_auroc_are_off_by_1_96_of_their_own_standard_errors(value: float):
    low, high = auroc_interval(value, 20, 60)
    for limit in {low, high} - {1.0}:
        pairs = 1 + 39 * (1 - limit) / (2 - limit) + 39 * limit / (1 + limit)
        error = (limit * (1 - limit) * pairs / (20 * 60)) ** 0.5
        assert abs(value - limit) == pytest.approx(1.959964 * error)
    assert low < value <= high
    assert (high == 1) == (value == 1)


def test_class_curves_have_the_areas_in_steps_and_draw_the_worst_classes():
    predictions = predict([0] * 30 + [1] * 50 + [2] * 4, classes=3, digits=1000)  # without ties
    areas = class_areas(predictions)
    curves = class_curves(predictions, areas)
    for row, name in zip(areas, predictions.classes, strict=True):
        assert row is not None
        x, y = np.array(curves[name]["roc"]).T
        assert (np.diff(x) * y[:-1]).sum() == pytest.approx(row["auroc"]["value"], abs=1e-4)
        recall, precision = np.array(curves[name]["precision_recall"]).T
        assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(row["average_precision"]["value"], abs=1e-4)
    many = predict([*range(30)] * 2, classes=30)
    assert len(class_curves(many, class_areas(many))) == CURVE_CLASSES


def test_plot_class_curves_draws_any_name():
    curve = {"roc": [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], "precision_recall": [[0.0, 1.0], [1.0, 1.0]]}
    figure = plot_class_curves(dict.fromkeys(["_x", "$x", "<script>", "esc\x1b[31m", "bad\udce9"], curve))
    figure.savefig(io.BytesIO())
    assert len(figure.legends[0].get_texts()) == 5
    assert "<script>" not in figure_to_svg(figure)


@pytest.mark.parametrize(("rare", "first"), [(9, "macro_precision"), (10, "accuracy")])
def test_averages_over_classes_come_first_if_classes_differ_by_more_than_three(rare: int, first: str):
    scores = compute_metrics(predict([0] * 30 + [1] * rare, classes=3))
    assert is_imbalanced(scores) == (rare == 9)
    assert sorted_metrics(scores)[0].name == first
    assert scores["classes"]["class 2"]["auroc"] == {"value": None, "interval": None}
