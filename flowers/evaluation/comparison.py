"""Compare trained runs: image by image, or over the seeds and folds of a multirun."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from flowers.evaluation.metrics import score
from flowers.evaluation.predictions import load_run_predictions
from flowers.evaluation.statistics import RunGroup, group_verdict, mcnemar, mcnemar_verdict
from flowers.evaluation.tables import ranking_table, run_group_table
from flowers.runtime.config import to_container
from flowers.runtime.files import write_json
from flowers.runtime.run_folder import RESULT_FILE, find_checkpoint, iterate_multirun, read_result, run_dir_of
from flowers.runtime.text import one_line

_REPLICATE_KEYS = ("seed", "data.fold", "data.split_seed")  # the runs of one group differ in these keys


def run_comparison(cfg: DictConfig) -> None:
    """Compare the runs of `cfg.runs` with the best of them, or the groups of runs below `cfg.multirun`.

    Raises:
        ValueError: There are too few runs, or they were scored on different images.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if cfg.multirun:
        groups = load_run_groups(Path(cfg.multirun), cfg.split)
        console.print(run_group_table(groups))
        console.print(group_verdict(groups), soft_wrap=True)
        return
    runs = to_container(cfg)["runs"]
    if not isinstance(runs, list) or len(runs) < 2:
        raise ValueError(f"runs={runs or ''}: expected at least two runs, runs='[A,B]', or multirun=FOLDER")
    predictions = {str(run): load_run_predictions(_run_dir(str(run)), cfg.split) for run in runs}
    if len(predictions) < 2:
        raise ValueError(f"runs={runs}: the same run twice: expected at least two runs")
    best, *others = sorted(predictions, key=lambda run: -score(predictions[run])["accuracy"])
    comparisons = {other: mcnemar(predictions[other], predictions[best]) for other in others}
    folder, names = _shorten_paths([best, *others])
    if folder:
        console.print(f"runs in {one_line(folder)}", soft_wrap=True)
    scores = {names[run]: score(predictions[run]) for run in (best, *others)}
    console.print(ranking_table(scores, {names[run]: comparison for run, comparison in comparisons.items()}))
    for other, comparison in comparisons.items():
        console.print(
            f"{one_line(names[best])} against {one_line(names[other])}: {mcnemar_verdict(comparison)}", soft_wrap=True
        )
        for change in ("gained", "lost"):
            console.print(f"  {change} {_list_paths(comparison[change], cfg.max_listed)}", soft_wrap=True)
    if cfg.output:
        write_json({"best": best, "against": comparisons}, cfg.output)


def load_run_groups(folder: Path, split: str) -> list[RunGroup]:
    """Group the finished runs of a multirun by all overrides but seed and fold.

    Returns:
        The groups, best mean accuracy first. Their names leave out the overrides that all groups share.

    Raises:
        ValueError: `folder` has no finished run, or a run has no score of `split`.
    """
    runs = []
    for run_dir, overrides in iterate_multirun(folder):
        result = read_result(run_dir)
        if result is None:
            continue
        if split not in result:
            raise ValueError(
                f"{run_dir / RESULT_FILE} has no score of split={split}: expected a split that the runs were scored on"
            )
        runs.append((overrides, result[split]["accuracy"]))
    if not runs:
        raise ValueError(f"multirun={folder}: no finished run there: give the folder of a multirun")
    return group_runs(runs)


def group_runs(runs: Iterable[tuple[Sequence[str], float]]) -> list[RunGroup]:
    """Group runs by all overrides but seed and fold.

    Args:
        runs: The overrides of each run, and its accuracy.

    Returns:
        The groups, best mean accuracy first. Their names leave out the overrides that all groups share.
    """
    accuracies: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for overrides, accuracy in runs:
        replicate = [override for override in overrides if override.partition("=")[0] in _REPLICATE_KEYS]
        common = tuple(override for override in overrides if override not in replicate)
        accuracies[common][" ".join(replicate)] = accuracy
    shared = set.intersection(*map(set, accuracies)) if len(accuracies) > 1 else set()
    names = {
        common: " ".join(item for item in common if item not in shared) or " ".join(common) for common in accuracies
    }
    groups = [RunGroup(names[common], values) for common, values in accuracies.items()]
    return sorted(groups, key=lambda group: -group.mean)


def _shorten_paths(runs: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the folder that holds all runs, empty if they have none in common, and the name of each run in it."""
    try:
        folder = os.path.commonpath([Path(run).parent for run in runs])
    except ValueError:  # absolute and relative paths
        folder = ""
    return folder, {run: os.path.relpath(run, folder) if folder else run for run in runs}


def _run_dir(run: str) -> Path:
    checkpoint = find_checkpoint(run)
    return run_dir_of(checkpoint) if Path(run).is_file() else Path(run)


def _list_paths(paths: Sequence[str], max_listed: int) -> str:
    listed = ", ".join(map(one_line, paths[:max_listed])) + (", …" if len(paths) > max_listed > 0 else "")
    return f"{len(paths)}: {listed}" if listed else str(len(paths))
