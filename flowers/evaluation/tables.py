"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from flowers.evaluation.metrics import METRICS
from flowers.evaluation.statistics import RunGroup, mean_std


def score_tables(name: str, scores: Mapping[str, Any]) -> list[Table]:
    """Return three tables of `compute_metrics(...)`: the metrics, the classes, and the confusion matrix.

    Args:
        name: The split or the folder that was scored.
        scores: The result of `compute_metrics`.
    """
    metrics = Table(name, "", "95 % interval", box=box.SIMPLE)
    for metric in METRICS:
        measured = scores["metrics"][metric.name]
        interval = format_interval(measured["interval"]) if measured["interval"] else ""
        metrics.add_row(metric.label, f"{measured['value']:.{metric.digits}f}", interval)
    metrics.add_row("images", str(scores["n"]), "")
    by_class = Table("class", "n", "precision", "recall", "F1", box=box.SIMPLE)
    for label, row in scores["classes"].items():
        by_class.add_row(label, str(row["n"]), *(_format_measured(row[key]) for key in ("precision", "recall", "f1")))
    confusion = Table("true \\ predicted", *scores["classes"], box=box.SIMPLE)
    for label, counts in zip(scores["classes"], scores["confusion"], strict=True):
        confusion.add_row(label, *map(str, counts))
    return [metrics, by_class, confusion]


def ranking_table(scores: Mapping[str, Any], against_best: Mapping[str, Any]) -> Table:
    """Return a table of runs, best first, with the lead of the best over each of the others.

    Args:
        scores: The result of `score` by run, best first.
        against_best: The result of `mcnemar(run, best)` by run.
    """
    table = Table("run", "accuracy", "lead of the best", "95 % interval", "p", box=box.SIMPLE)
    for name, row in scores.items():
        pair = against_best.get(name)
        lead = [f"{pair['difference']:.4f}", format_interval(pair["interval"]), f"{pair['p']:.3g}"] if pair else []
        table.add_row(name, f"{row['accuracy']:.4f}", *lead)
    return table


def run_group_table(groups: Sequence[RunGroup]) -> Table:
    """Return a table with the mean and the standard deviation of each group of runs."""
    table = Table("overrides", "mean accuracy", "standard deviation", "runs", box=box.SIMPLE)
    for group in groups:
        mean, deviation = mean_std(list(group.accuracies.values()))
        spread = f"{deviation:.4f}" if len(group.accuracies) > 1 else "one run"
        table.add_row(group.name or "(no overrides)", f"{mean:.4f}", spread, str(len(group.accuracies)))
    return table


def format_interval(interval: Sequence[float], digits: int = 4, separator: str = " to ") -> str:
    """Format `[low, high]` as `0.9254 to 0.9626`."""
    return f"{interval[0]:.{digits}f}{separator}{interval[1]:.{digits}f}"


def _format_measured(measured: Mapping[str, Any]) -> str:
    if measured["value"] is None:
        return "none"
    return f"{measured['value']:.3f} {format_interval(measured['interval'], 3, '-')}"
