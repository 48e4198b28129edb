"""The summary table at the end of a Hydra multirun."""

import atexit
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from flowers.runtime.files import atomic_write_text
from flowers.runtime.run_folder import RESULT_FILE, START_FILE, iterate_multirun

MULTIRUN_COLUMNS = ("run", "overrides", "accuracy", "low", "high", "loss", "n", "seconds")


class MultirunSummary(Callback):
    """Print the runs of a multirun and write them to `runs.csv` in its folder. Exit with 1 if a run failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table at exit, even if the multirun stops early, such as after a killed job."""
        atexit.register(_summarize, _multirun_dir(config))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and report failed runs."""
        atexit.unregister(_summarize)
        folder = _multirun_dir(config)
        rows = _summarize(folder)
        if not rows:
            sys.exit(f"no run found in {folder}: all machines of the launcher must share this folder")
        failed = [row["run"] for row in rows if row["accuracy"] == ""]
        if failed:
            sys.exit(f"{len(failed)} of {len(rows)} runs failed: see train.log in {folder}/ {', '.join(failed)}")


def _multirun_dir(config: DictConfig) -> Path:
    return Path(config.hydra.sweep.dir).resolve()


def _summarize(folder: Path) -> list[dict[str, Any]]:
    rows = multirun_rows(folder)
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, MULTIRUN_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(folder / "runs.csv", text.getvalue())
        _print_rows(rows, folder)
    return rows


def multirun_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row of `MULTIRUN_COLUMNS` for each run below `folder`: best accuracy first, failed runs last."""
    rows = []
    for run_dir, overrides in iterate_multirun(folder):
        row: dict[str, Any] = dict.fromkeys(MULTIRUN_COLUMNS, "")
        row |= {"run": run_dir.name, "overrides": " ".join(overrides)}
        # A folder that already held another run refuses this one and keeps the result of the other.
        start, result_file = run_dir / START_FILE, run_dir / RESULT_FILE
        started = start.exists() and [str(line) for line in OmegaConf.load(start).overrides] == overrides
        if started and result_file.exists():
            result = json.loads(result_file.read_text(encoding="utf-8"))
            val, (low, high) = result["val"], result["val"]["interval"]
            row |= {"accuracy": val["accuracy"], "low": low, "high": high, "loss": val["loss"], "n": val["n"]}
            row |= {"seconds": round(sum(result["cost"]["seconds"].values()), 1)}
        rows.append(row)
    return sorted(rows, key=lambda row: (-(row["accuracy"] or -1), len(row["run"]), row["run"]))


def _print_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    table = Table(
        *MULTIRUN_COLUMNS, title=f"{len(rows)} runs in {folder}, best first", title_justify="left", box=box.SIMPLE
    )
    common = set.intersection(*(set(row["overrides"].split()) for row in rows)) if len(rows) > 1 else set()
    for row in rows:
        row = row | {"overrides": " ".join(part for part in row["overrides"].split() if part not in common)}
        cells = [
            f"{value:.4f}" if isinstance(value, float) and name != "seconds" else str(value)
            for name, value in row.items()
        ]
        table.add_row(*(cells if row["accuracy"] != "" else [*cells[:2], "failed"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
