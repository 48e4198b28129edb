"""Figures for TensorBoard, and as SVG for the report."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_INK = "#010203"  # replaced by the text color of the page


_TRAIN, _VAL = "#d9822b", "#3b82c4"  # visible on white and on black, and to color-blind readers


def figure_to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element that takes the width, the font and the text color of its page."""
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flowers"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    element = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    head, rest = element.split(">", 1)
    keep = [part for part in head.split() if not part.startswith(("width=", "height="))]
    return " ".join(keep) + ">" + rest


def plot_curves(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Plot loss and accuracy over the steps; `scalars` holds (step, value) pairs of `train/loss`, `val/accuracy`, …"""
    figure, axes = _plot(2, 7.2)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for split, color in (("train", _TRAIN), ("val", _VAL)):
            points = scalars.get(f"{split}/{name}", [])
            axis.plot(*zip(*points, strict=True) if points else ([], []), color=color, label=split, marker=".")
        axis.set(title=name, xlabel="step")
    axes[0].legend(frameon=False, labelcolor=_INK)
    return figure


def plot_reliability(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Plot the reliability diagram, before and after calibration; a calibrated model lies on the diagonal."""
    figure, (axis,) = _plot(1, 3.6)
    axis.plot([0, 1], [0, 1], color=_INK, linewidth=0.7, linestyle=":")
    for name, color in (("before", _TRAIN), ("after", _VAL)):
        rows = bins[name]
        axis.plot(
            [row["confidence"] for row in rows], [row["accuracy"] for row in rows], color=color, label=name, marker="o"
        )
    axis.set(xlabel="predicted probability", ylabel="share of correct predictions", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.legend(frameon=False, labelcolor=_INK)
    return figure


def plot_coverage(points: Sequence[Mapping[str, float]]) -> Figure:
    """Plot the accuracy on the most confident share of the images over that share."""
    figure, (axis,) = _plot(1, 3.6)
    axis.plot([point["coverage"] for point in points], [point["accuracy"] for point in points], color=_VAL)
    axis.set(xlabel="share of the images, most confident first", ylabel="accuracy on that share")
    return figure


def plot_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Plot the confusion matrix on white, one row per true class, shaded by the share of the row."""
    side = 1.6 + 0.55 * min(len(classes), 20)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", facecolor="white")
    axis = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                color = "white" if shares[row][column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", color=color)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true")
    return figure


def _plot(number: int, width: float) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(width, 2.9), layout="constrained")
    axes = figure.subplots(1, number, squeeze=False)[0]
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(colors=_INK)
        axis.xaxis.label.set_color(_INK)
        axis.yaxis.label.set_color(_INK)
        axis.title.set_color(_INK)
        axis.grid(color=_INK, alpha=0.12, linewidth=0.6)
        for side, spine in axis.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=_INK, linewidth=0.7)
    return figure, axes
