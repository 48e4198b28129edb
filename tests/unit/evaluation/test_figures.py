import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from flowers.evaluation.figures import figure_to_svg, plot_confusion, plot_coverage, plot_curves, plot_reliability

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


@pytest.mark.parametrize(("count", "texts"), [(3, 9), (20, 400), (21, 0)])
def test_plot_confusion_writes_counts_for_at_most_twenty_classes(count: int, texts: int):
    matrix = [[int(row == column) for column in range(count)] for row in range(count)]
    figure = plot_confusion(matrix, [str(index) for index in range(count)])
    assert len(figure.axes[0].texts) == texts
