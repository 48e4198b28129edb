"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flowers.evaluation.metrics import sorted_metrics
from flowers.evaluation.statistics import RunGroup, mean_interval, mean_std
from flowers.runtime.text import one_line

REJECTION_LABELS = {  # the parts of `rejection_scores`
    "false_rejections": "false rejections on val, threshold from its other half",
    "rejected_strangers": "rejected strangers",
    "auroc": "AUROC of strangers and val",
}

_TABLE_ROWS = 40  # of a table on a terminal


def plain(text: object) -> Text:
    """Return a name as a cell of a table: on one line, without markup, and folded and not cut where it is too long."""
    return Text(one_line(text), overflow="fold")


def score_tables(name: str, scores: Mapping[str, Any], width: int = 80) -> list[Table]:
    """Return three tables of `compute_metrics(...)`: the metrics, the classes, and the confusion matrix.

    The classes with the worst F1 come first. A table with more rows than a terminal can show ends with the number of
    those left out. If the confusion matrix is too wide, the pairs that are confused most take its place.

    Args:
        name: The split or the folder that was scored.
        scores: The result of `compute_metrics`.
        width: Columns of the terminal.
    """
    metrics = Table(Column(plain(name)), "", "95 % interval", box=box.SIMPLE)
    for metric in sorted_metrics(scores):
        measured = scores["metrics"][metric.name]
        interval = format_interval(measured["interval"]) if measured["interval"] else ""
        metrics.add_row(metric.label, f"{measured['value']:.{metric.digits}f}", interval)
    metrics.add_row("images", str(scores["n"]), "")
    with_images = sum(row["n"] > 0 for row in scores["classes"].values())
    if with_images < len(scores["classes"]):
        metrics.add_row("classes with images", f"{with_images} of {len(scores['classes'])}", "")
    by_class = Table("class", "n", "precision", "recall", "F1", box=box.SIMPLE)
    for label, row in sort_by_f1(scores)[:_TABLE_ROWS]:
        by_class.add_row(
            plain(label), str(row["n"]), *(_format_measured(row[key]) for key in ("precision", "recall", "f1"))
        )
    _note_left_out(by_class, len(scores["classes"]), "classes, worst F1 first: report.html lists all")
    return [metrics, by_class, _confusion_matrix(scores, width) or _confused_pairs(scores)]


def rejection_table(scores: Mapping[str, Any]) -> Table:
    """Return a table of `rejection_scores(...)`."""
    table = Table("none of these", "", "95 % interval", "images", box=box.SIMPLE)
    table.add_row("share of false rejections, asked for", f"{scores['reject']:g}", "", "")
    for key, label in REJECTION_LABELS.items():
        if (row := scores.get(key)) is not None:
            table.add_row(label, f"{row['value']:.4f}", format_interval(row["interval"]), str(row["n"]))
    return table


def sort_by_f1(scores: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and row of each class in the result of `compute_metrics`, worst F1 first, no images last."""
    return sorted(scores["classes"].items(), key=lambda item: (item[1]["f1"]["value"] is None, item[1]["f1"]["value"]))


def _confusion_matrix(scores: Mapping[str, Any], width: int) -> Table | None:
    """Return the table of the confusion matrix, or None if it is wider than the terminal."""
    if scores["confusion"] is None:
        return None
    matrix = Table("true \\ predicted", *(Column(plain(label)) for label in scores["classes"]), box=box.SIMPLE)
    for label, counts in zip(scores["classes"], scores["confusion"], strict=True):
        matrix.add_row(plain(label), *map(str, counts))
    unwrapped = Console(width=10**6).measure(matrix).maximum
    return matrix if unwrapped <= width else None


def _confused_pairs(scores: Mapping[str, Any]) -> Table:
    pairs = scores["confused_pairs"]
    table = Table("true", "predicted", "images", "of the class", box=box.SIMPLE)
    for pair in pairs[:_TABLE_ROWS]:
        n = scores["classes"][pair["true"]]["n"]
        table.add_row(plain(pair["true"]), plain(pair["predicted"]), str(pair["n"]), f"{100 * pair['n'] / n:.0f} %")
    _note_left_out(table, len(pairs), "confused pairs, most images first: output=FILE.json lists all")
    return table


def _note_left_out(table: Table, count: int, what: str) -> None:
    if count > _TABLE_ROWS:
        table.caption = f"{_TABLE_ROWS} of {count:,} {what}"
        table.caption_justify = "left"


def ranking_table(scores: Mapping[str, Any], against_best: Mapping[str, Any]) -> Table:
    """Return a table of runs, best first, with the lead of the best over each of the others.

    Args:
        scores: The result of `score` by run, best first.
        against_best: The result of `mcnemar(run, best)` by run.
    """
    table = Table("run", "accuracy", "behind", "95 % interval", "p", box=box.SIMPLE, collapse_padding=True)
    for name, row in scores.items():
        pair = against_best.get(name)
        lead = [f"{pair['difference']:.4f}", format_interval(pair["interval"]), f"{pair['p']:.3g}"] if pair else []
        table.add_row(plain(name), f"{row['accuracy']:.4f}", *lead)
    _keep_numbers_whole(table)
    return table


def run_group_table(groups: Sequence[RunGroup]) -> Table:
    """Return a table with the mean accuracy of each group of runs, its interval, and the spread of the runs."""
    table = Table("overrides", "mean", "95 % interval", "deviation", "runs", box=box.SIMPLE, collapse_padding=True)
    for group in groups:
        accuracies = list(group.accuracies.values())
        mean, deviation = mean_std(accuracies)
        spread = (
            [format_interval(mean_interval(accuracies, group.overlap, group.images)), f"{deviation:.4f}"]
            if len(accuracies) > 1
            else ["", ""]
        )
        table.add_row(plain(group.name or "(no overrides)"), f"{mean:.4f}", *spread, str(len(accuracies)))
    _keep_numbers_whole(table)
    return table


def _keep_numbers_whole(table: Table) -> None:
    """Let only the names in the first column wrap."""
    for column in table.columns[1:]:
        column.no_wrap = True


def format_interval(interval: Sequence[float], digits: int = 4, separator: str = " to ") -> str:
    """Format `[low, high]` as `0.9254 to 0.9626`."""
    return f"{interval[0]:.{digits}f}{separator}{interval[1]:.{digits}f}"


def _format_measured(measured: Mapping[str, Any]) -> str:
    if measured["value"] is None:
        return "none"
    return f"{measured['value']:.3f} {format_interval(measured['interval'], 3, '-')}"
