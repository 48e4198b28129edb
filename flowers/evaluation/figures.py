"""Figures for TensorBoard, and as SVG for the report."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from flowers.evaluation.confusion import MATRIX_CLASSES, ConfusionCells
from flowers.evaluation.statistics import wilson_interval
from flowers.runtime.text import one_line

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


def plot_class_curves(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    """Plot the ROC and the precision-recall curves of classes against all others.

    Args:
        curves: The result of `class_curves`.
    """
    figure, (roc, precision_recall) = _plot(2, 7.2)
    figure.set_size_inches(7.2, 3.4 + 0.2 * math.ceil(len(curves) / 3))
    for number, curve in enumerate(curves.values()):
        roc.step(*zip(*curve["roc"], strict=True), where="post", color=f"C{number}", linewidth=1.2)
        points = zip(*curve["precision_recall"], strict=True)
        precision_recall.step(*points, where="pre", color=f"C{number}", linewidth=1.2)
    roc.set(title="ROC", xlabel="share of the other images, taken for the class", ylabel="recall")
    precision_recall.set(title="precision-recall", xlabel="recall", ylabel="precision")
    for axis in (roc, precision_recall):
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    names = [f"{number}. {_shorten(name)}" for number, name in enumerate(curves, 1)]  # matplotlib drops a leading "_"
    legend = figure.legend(roc.lines, names, loc="outside lower center", ncols=3, frameon=False, labelcolor=_INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def plot_reliability(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Plot the reliability diagram, before and after calibration; a calibrated model lies on the diagonal.

    Args:
        bins: The result of `reliability_bins` before and after. The bars are 95 % intervals of the accuracies.
    """
    figure, (axis,) = _plot(1, 3.6)
    axis.plot([0, 1], [0, 1], color=_INK, linewidth=0.7, linestyle=":")
    for name, color in (("before", _TRAIN), ("after", _VAL)):
        rows = bins[name]
        confidences, accuracies = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
        intervals = [wilson_interval(round(row["accuracy"] * row["n"]), int(row["n"])) for row in rows]
        bars = [
            [max(0.0, value - low) for value, (low, _) in zip(accuracies, intervals, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(accuracies, intervals, strict=True)],
        ]
        axis.errorbar(
            confidences, accuracies, bars if rows else None, color=color, label=name, marker="o", elinewidth=1
        )
    n = sum(int(row["n"]) for row in bins["after"])
    axis.set(xlabel=f"predicted probability, n = {n:,}", ylabel="share of correct predictions")
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axis.legend(frameon=False, labelcolor=_INK)
    return figure


def plot_coverage(points: Sequence[Mapping[str, float]]) -> Figure:
    """Plot the accuracy on the most confident share of the images over that share."""
    figure, (axis,) = _plot(1, 3.6)
    axis.plot([point["coverage"] for point in points], [point["accuracy"] for point in points], color=_VAL)
    axis.set(xlabel="share of the images, most confident first", ylabel="accuracy on that share")
    return figure


def plot_accuracy_cost(points: Sequence[tuple[str, float, int, bool]], n: int) -> Figure:
    """Plot accuracies with their 95 % intervals over the time for an image, on white.

    Args:
        points: For each backbone its name, its milliseconds for an image, the number of correct images, and whether it
            is pretrained.
        n: The number of images.
    """
    figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for is_pretrained, color, marker in ((True, _VAL, "o"), (False, _TRAIN, "x")):
        shown = [point for point in points if point[3] == is_pretrained]
        if not shown:
            continue
        accuracies = [correct / n for _, _, correct, _ in shown]
        intervals = [wilson_interval(correct, n) for _, _, correct, _ in shown]
        bars = [
            [max(0.0, value - low) for value, (low, _) in zip(accuracies, intervals, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(accuracies, intervals, strict=True)],
        ]
        times = [milliseconds for _, milliseconds, _, _ in shown]
        label = "pretrained" if is_pretrained else "random weights"
        axis.errorbar(times, accuracies, bars, color=color, label=label, fmt=marker, elinewidth=1, capsize=2)
        for (name, milliseconds, _, _), accuracy in zip(shown, accuracies, strict=True):
            axis.annotate(
                _shorten(name.removesuffix(":random")),
                (milliseconds, accuracy),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=8,
                parse_math=False,
            )
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="milliseconds per image, frozen backbone", ylabel=f"out-of-fold accuracy, n = {n:,}")
    axis.grid(alpha=0.2, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    return figure


def plot_learning_curve(content: Mapping[str, Any], is_page: bool) -> Figure:
    """Plot accuracies over the number of training photos, with the power law and its 95 % band up to twice the photos.

    Args:
        content: The result of `summarize_curve`.
        is_page: Whether the figure takes the colors of a page; otherwise it is on white.
    """
    figure, (axis,) = _plot(1, 7.2)
    curve, points = content["curve"], content["points"]
    axis.fill_between(
        curve["photos"], curve["low"], curve["high"], color=_VAL, alpha=0.2, linewidth=0, label="95 % band"
    )
    axis.plot(curve["photos"], curve["accuracy"], color=_VAL, label="power law")
    pairs = [(point["photos"], accuracy) for point in points for accuracy in point["accuracies"]]
    axis.plot(*zip(*pairs, strict=True), color=_TRAIN, marker=".", linestyle="", label="one training")
    axis.axvline(points[-1]["photos"], color=_INK, linewidth=0.7, linestyle=":")
    axis.set_xscale("log")
    axis.set_xticks([point["photos"] for point in points] + [content["twice"]["photos"]])
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", rotation=45)
    axis.set(xlabel="training photos", ylabel=f"accuracy, n = {content['validation_photos']:,}")
    axis.legend(frameon=False, loc="lower right", labelcolor=_INK)
    if not is_page:
        figure.set_facecolor("white")
    return figure


def plot_range_tests(tests: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot the loss over the learning rate, and the suggested rate, one chart for each setting.

    Args:
        tests: By setting, `rates`, `losses`, `smoothed` and `suggestion`.
    """
    figure, axes = _plot(len(tests), 4.2 * len(tests))
    for axis, (setting, test) in zip(axes, tests.items(), strict=True):
        axis.plot(test["rates"], test["losses"], color=_VAL, alpha=0.35, linewidth=0.8, label="loss of a step")
        axis.plot(test["rates"], test["smoothed"], color=_VAL, label="moving average")
        axis.axvline(test["suggestion"], color=_TRAIN, linestyle="--", label=f"suggested: {test['suggestion']:.2g}")
        axis.set(title=f"{test['stage']} stage", xlabel=setting, ylabel="training loss", xscale="log")
        low, high = min(test["smoothed"]), test["smoothed"][0]
        axis.set_ylim(low - 0.3 * (high - low) - 0.02, high + 1.2 * (high - low) + 0.02)
        axis.legend(frameon=False, labelcolor=_INK, fontsize="small")
    return figure


def plot_confusion(cells: ConfusionCells, classes: Sequence[str]) -> Figure:
    """Plot the confusion matrix on white, one row per true class, shaded by the share of the row.

    Of more than `MATRIX_CLASSES` classes, plot the pairs that are confused most, as bars.
    """
    if len(classes) > MATRIX_CLASSES:
        return _plot_confused_pairs(cells, classes)
    matrix = cells.matrix()
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
    labels = [_shorten(label) for label in classes]
    axis.set_xticks(range(len(classes)), labels, rotation=45, ha="right", parse_math=False)
    axis.set_yticks(range(len(classes)), labels, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    return figure


def _plot_confused_pairs(cells: ConfusionCells, classes: Sequence[str]) -> Figure:
    pairs = cells.confused_pairs(classes)
    shown = pairs[:MATRIX_CLASSES]
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(shown)), layout="constrained", facecolor="white")
    axis = figure.subplots()
    axis.barh(range(len(shown)), [pair["n"] for pair in shown], color=_VAL)
    labels = [f"{_shorten(pair['true'])} → {_shorten(pair['predicted'])}" for pair in shown]
    axis.set_yticks(range(len(shown)), labels, parse_math=False)
    axis.invert_yaxis()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="images", title=f"most confused (true → predicted): {len(shown)} of {len(pairs):,} pairs")
    return figure


def _shorten(label: str, length: int = 30) -> str:
    """Return a label for a tick, without its middle if it is long."""
    label = one_line(label)
    return label if len(label) <= length else f"{label[: length // 2]}…{label[-length // 2 + 1 :]}"


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
