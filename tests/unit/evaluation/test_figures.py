import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from flowers.evaluation.confusion import ConfusionCells, count_confusion
from flowers.evaluation.figures import figure_to_svg, plot_confusion, plot_coverage, plot_curves, plot_reliability
from flowers.runs.predictions import Predictions

POINT = {"confidence": 0.9, "accuracy": 0.8, "coverage": 1.0, "n": 5}


@pytest.mark.parametrize(
    "figure",
    [
        plot_curves({}),
        plot_curves({"train/loss": [(1, 2.0), (2, 1.0)], "val/accuracy": [(2, 0.5)]}),
        plot_reliability({"before": [POINT], "after": []}),
        plot_coverage([POINT]),
    ],
    ids=["no_curves", "curves", "reliability", "coverage"],
)
def test_figure_to_svg_takes_size_and_text_color_from_the_page(figure: Figure):
    svg = figure_to_svg(figure)
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert not {"width", "height"} & root.attrib.keys()
    assert "viewBox" in root.attrib
    assert "currentColor" in svg


def test_figure_to_svg_is_deterministic():
    first, second = (figure_to_svg(plot_coverage([POINT])) for _ in range(2))
    assert first == second


def test_plot_curves_draws_loss_and_accuracy_of_both_splits():
    figure = plot_curves({"train/loss": [(1, 2.0), (2, 1.0)], "val/accuracy": [(2, 0.5)]})
    loss, accuracy = figure.axes
    assert [np.asarray(line.get_xdata()).tolist() for line in loss.lines] == [[1, 2], []]
    assert [np.asarray(line.get_ydata()).tolist() for line in accuracy.lines] == [[], [0.5]]


def confusion(class_count: int, mistakes: int = 0) -> ConfusionCells:
    """A confusion matrix with one correct image for each class, and some mistakes."""
    true = torch.tensor([*range(class_count), *range(mistakes)])
    predicted = torch.tensor([*range(class_count), *range(1, mistakes + 1)])
    logits = torch.nn.functional.one_hot(predicted, class_count).double()
    names = [str(index) for index in range(class_count)]
    return count_confusion(Predictions([""] * len(true), true, logits, names))


@pytest.mark.parametrize(("count", "texts"), [(3, 9), (20, 400), (21, 0)])
def test_plot_confusion_writes_counts_for_at_most_twenty_classes(count: int, texts: int):
    figure = plot_confusion(confusion(count), [str(index) for index in range(count)])
    assert len(figure.axes[0].texts) == texts


@pytest.mark.parametrize(("mistakes", "bars"), [(0, 0), (3, 3), (999, 40)])
def test_plot_confusion_of_many_classes_shows_the_most_confused_pairs(mistakes: int, bars: int):
    figure = plot_confusion(confusion(1000, mistakes), [f"class {index}" for index in range(1000)])
    assert len(figure.axes[0].patches) == bars
    assert f"{bars} of {mistakes} pairs" in figure.axes[0].get_title()
    assert max(figure.get_size_inches()) < 12


@pytest.mark.parametrize("count", [3, 41])
def test_plot_confusion_draws_any_class_name(count: int):
    names = ["$x", "a$^", "esc\x1b[31m\r\udce9" + 200 * "n", *(str(index) for index in range(count))][:count]
    figure = plot_confusion(confusion(count, mistakes=2), names)
    figure.savefig(io.BytesIO())
    drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert all(label.isprintable() and len(label) < 100 for label in drawn)


def test_plot_reliability_says_how_many_images_it_shows():
    figure = plot_reliability({"before": [POINT], "after": [POINT, POINT]})
    assert figure.axes[0].get_xlabel().endswith("n = 10")
