"""The summary table at the end of a Hydra multirun."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowers.runs.resume import read_start
from flowers.runs.run_folder import iterate_multirun, read_result
from flowers.runtime.text import one_line, write_csv
from flowers.settings.job import MultirunObserver

MULTIRUN_COLUMNS = ("run", "overrides", "accuracy", "low", "high", "loss", "n", "seconds")


_unfinished: list[Path] = []  # folders of multiruns whose table is not printed


class MultirunSummary(MultirunObserver):
    """Print the runs of a multirun and write them to `runs.csv` in its folder. Exit with 1 if a run failed."""

    def started(self, folder: Path) -> None:
        """Have `summarize_unfinished` print the table if the multirun stops early, such as after a killed job."""
        _unfinished.append(folder)

    def ended(self, folder: Path) -> None:
        """Print the table and report failed runs."""
        _unfinished.clear()
        rows = _summarize(folder)
        if not rows:
            sys.exit(f"no run found in {folder}: all machines of the launcher must share this folder")
        failed = [row["run"] for row in rows if row["accuracy"] == ""]
        if failed:
            sys.exit(f"{len(failed)} of {len(rows)} runs failed: see train.log in {folder}/ {', '.join(failed)}")


def summarize_unfinished() -> None:
    """Print the table of a multirun that has stopped early. Not at exit: torch cannot be imported there."""
    while _unfinished:
        _summarize(_unfinished.pop())


def _summarize(folder: Path) -> list[dict[str, Any]]:
    rows = multirun_rows(folder)
    if rows:
        cells = [(row | {"overrides": " ".join(row["overrides"])}).values() for row in rows]
        write_csv(folder / "runs.csv", [MULTIRUN_COLUMNS, *map(tuple, cells)])
        _print_rows(rows, folder)
    return rows


def multirun_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row of `MULTIRUN_COLUMNS` for each run below `folder`: best accuracy first, failed runs last.

    `overrides` is a list. The columns after it are empty for a failed run, or one whose result is damaged.
    """
    rows = []
    for run_dir, overrides in iterate_multirun(folder):
        row: dict[str, Any] = dict.fromkeys(MULTIRUN_COLUMNS, "")
        row |= {"run": run_dir.name, "overrides": overrides}
        with suppress(ValueError):  # the run has not started, or its files are damaged
            # A folder that already held another run refuses this one and keeps the result of the other.
            is_own = read_start(run_dir)[1][: len(overrides)] == overrides
            if is_own and (result := read_result(run_dir)):
                row |= _result_cells(result)
        rows.append(row)
    return sorted(rows, key=lambda row: (-(row["accuracy"] or -1), len(row["run"]), row["run"]))


def _result_cells(result: Mapping[str, Any]) -> dict[str, Any]:
    val, (low, high) = result["val"], result["val"]["interval"]
    cells = {"accuracy": val["accuracy"], "low": low, "high": high, "loss": val["loss"], "n": val["n"]}
    return cells | {"seconds": round(sum(result["cost"]["seconds"].values()), 1)}


def _print_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    from flowers.evaluation.comparison import group_runs  # imports torch, which Hydra's callback must not
    from flowers.evaluation.tables import plain, run_group_table

    finished = [row for row in rows if row["accuracy"] != ""]
    groups = group_runs(
        ((row["overrides"], row["accuracy"], folder / row["run"]) for row in finished),
        {folder / row["run"]: row["n"] for row in finished},
    )
    has_repeats = any(len(group.accuracies) > 1 for group in groups)
    if has_repeats:  # the best of several seeds or folds of one setting is no better than the others
        rows = sorted(rows, key=lambda row: (len(row["run"]), row["run"]))
    title = f"{len(rows)} runs in {one_line(folder)}{'' if has_repeats else ', best first'}"
    table = Table(*MULTIRUN_COLUMNS, title=Text(title), title_justify="left", box=box.SIMPLE)
    common = set.intersection(*(set(row["overrides"]) for row in rows)) if len(rows) > 1 else set()
    for column in table.columns[2:]:
        column.no_wrap = True  # a narrow terminal folds names, not numbers
    for row in rows:
        row = row | {"overrides": " ".join(part for part in row["overrides"] if part not in common)}
        cells = [
            f"{value:.4f}" if isinstance(value, float) and name != "seconds" else str(value)
            for name, value in row.items()
        ]
        table.add_row(*map(plain, cells if row["accuracy"] != "" else [*cells[:2], "failed"]))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if has_repeats:
        means = run_group_table(groups)
        means.title, means.title_justify = Text("means over seeds and folds, best first"), "left"
        console.print(means)
