"""Compare trained runs: image by image, or over the seeds and folds of a multirun."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flowers.data.corrections import Corrections, load_corrections
from flowers.data.splits import load_split
from flowers.evaluation.metrics import score
from flowers.evaluation.statistics import RunGroup, group_verdict, holm, mcnemar, mcnemar_verdict, selection_note
from flowers.evaluation.tables import ranking_table, run_group_table
from flowers.runs.predictions import Predictions, concat_predictions, load_run_predictions
from flowers.runs.run_folder import (
    CORRECTIONS_FILE,
    RESULT_FILE,
    SPLIT_FILE,
    find_checkpoint,
    iterate_multirun,
    read_result,
    run_dir_of,
)
from flowers.runtime.files import write_json
from flowers.runtime.text import one_line
from flowers.settings.schema.programs import CompareSettings

_REPLICATE_KEYS = ("seed", "data.fold", "data.split_seed")  # the runs of one group differ in these keys


def run_comparison(settings: CompareSettings) -> None:
    """Compare the runs of `settings.runs` with the best of them, or the groups of runs below `settings.multirun`.

    Raises:
        ValueError: There are too few runs, or they were scored on different images.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if settings.multirun:
        if settings.corrections:
            raise ValueError("corrections with multirun: expected corrections with runs='[A,B]'")
        groups = load_run_groups(Path(settings.multirun), settings.split)
        console.print(run_group_table(groups))
        console.print(group_verdict(groups), soft_wrap=True)
        _compare_pooled(groups, settings.split, console)
        return
    runs = settings.runs
    if len(runs) < 2:
        raise ValueError(f"runs={runs or ''}: expected at least two runs, runs='[A,B]', or multirun=FOLDER")
    checkpoints = {run: find_checkpoint(run) for run in runs}
    folders = {run: run_dir_of(file) if Path(run).is_file() else Path(run) for run, file in checkpoints.items()}
    predictions = {run: load_run_predictions(folder, settings.split) for run, folder in folders.items()}
    if len(predictions) < 2:
        raise ValueError(f"runs={runs}: the same run twice: expected at least two runs")
    if settings.corrections:
        predictions = correct_predictions(predictions, folders, load_corrections(settings.corrections))
    else:
        check_same_corrections(folders)
    best, *others = sorted(predictions, key=lambda run: -score(predictions[run])["accuracy"])
    try:
        comparisons = compare_with_best(predictions[best], {other: predictions[other] for other in others})
    except ValueError as error:
        raise ValueError(f"{one_line(best)} against {error}") from error
    folder, names = _shorten_paths([best, *others])
    if settings.corrections:
        n = len(predictions[best])
        console.print(
            f"{n:,} images that all runs scored, with the labels of {one_line(settings.corrections)}", soft_wrap=True
        )
        for run in (best, *others):
            console.print(f"{one_line(names[run])} trained with {_describe(folders[run])}", soft_wrap=True)
    if folder:
        console.print(f"runs in {one_line(folder)}", soft_wrap=True)
    scores = {names[run]: score(predictions[run]) for run in (best, *others)}
    console.print(ranking_table(scores, {names[run]: comparison for run, comparison in comparisons.items()}))
    for other, comparison in comparisons.items():
        console.print(
            f"{one_line(names[best])} against {one_line(names[other])}: {mcnemar_verdict(comparison, len(others))}",
            soft_wrap=True,
        )
        for change in ("gained", "lost"):
            console.print(f"  {change} {_list_paths(comparison[change], settings.max_listed)}", soft_wrap=True)
    console.print(selection_note(list(predictions.values())), soft_wrap=True)
    if settings.output:
        write_json({"best": best, "against": comparisons}, settings.output)


def check_same_corrections(folders: Mapping[str, Path]) -> None:
    """Check that runs were trained, and so scored, with the same corrections of labels.

    Args:
        folders: The run folder of each run.

    Raises:
        ValueError: Two runs differ in them.
    """
    first, *others = folders
    for run in others:
        if _corrections_of(folders[run]).sha256 != _corrections_of(folders[first]).sha256:
            raise ValueError(
                f"{one_line(first)} was trained with {_describe(folders[first])}, {one_line(run)} with "
                f"{_describe(folders[run])}: give corrections=FILE to score both by the same labels"
            )


def _corrections_of(folder: Path) -> Corrections:
    path = folder / CORRECTIONS_FILE
    return load_corrections(path) if path.is_file() else Corrections()


def _describe(folder: Path) -> str:
    corrections = _corrections_of(folder)
    return f"corrections ({corrections.summary()})" if corrections.lines else "no corrections"


def correct_predictions(
    predictions: Mapping[str, Predictions], folders: Mapping[str, Path], corrections: Corrections
) -> dict[str, Predictions]:
    """Return the predictions for the images that all runs have scored, with corrected labels.

    Args:
        predictions: The predictions of each run.
        folders: The run folder of each run; its split.csv tells the digest of an image.
        corrections: The corrections of labels.

    Raises:
        ValueError: The runs have no image in common, or lack a corrected class.
    """
    labels_of: dict[str, dict[str, str]] = {}
    for run, predicted in predictions.items():
        wanted = {*predicted.paths}
        records = [record for record in load_split(folders[run] / SPLIT_FILE) if record.path in wanted]
        labels_of[run] = {record.path: record.label for record in corrections.apply(records)}
    first, *others = labels_of.values()
    # A label that only some of the runs corrected: without a line in the file, it is not known which is right.
    paths = [path for path in first if all(each.get(path) == first[path] for each in others)]
    if not paths:
        raise ValueError("the runs scored no image with the same label: compare runs with similar splits")
    corrected = {}
    for run, predicted in predictions.items():
        numbers = {name: number for number, name in enumerate(predicted.classes)}
        if missing := {first[path] for path in paths} - {*numbers}:
            raise ValueError(
                f"{one_line(run)} lacks the class {one_line(min(missing))}: compare runs with the same classes"
            )
        positions = {path: position for position, path in enumerate(predicted.paths)}
        indices = torch.tensor([positions[path] for path in paths])
        labels = torch.tensor([numbers[first[path]] for path in paths])
        corrected[run] = Predictions(paths, labels, predicted.logits[indices], predicted.classes)
    return corrected


def compare_with_best(best: Predictions, others: Mapping[str, Predictions]) -> dict[str, dict[str, Any]]:
    """Return `mcnemar(other, best)` for each of the others, with `p` adjusted by `holm`.

    Raises:
        ValueError: See `mcnemar`; the message names the other.
    """
    comparisons = {}
    for name, other in others.items():
        try:
            comparisons[name] = mcnemar(other, best)
        except ValueError as error:
            raise ValueError(f"{one_line(name)}: {error}") from error
    adjusted = holm([comparison["p"] for comparison in comparisons.values()])
    return {name: pair | {"p": p} for (name, pair), p in zip(comparisons.items(), adjusted, strict=True)}


def _compare_pooled(groups: Sequence[RunGroup], split: str, console: Console) -> None:
    """Print a ranking of the groups by their pooled images, if there are several and they were scored on the same."""
    with suppress(ValueError):  # other images, or a run without predictions
        pooled = {group.name: pooled_predictions(group, split) for group in groups}
        best, *others = sorted(pooled, key=lambda name: -score(pooled[name])["accuracy"])
        if not others:
            return
        comparisons = compare_with_best(pooled[best], {name: pooled[name] for name in others})
        n, seeds = len(pooled[best]), {seed for group in groups for seed, _ in map(_split_replicate, group.accuracies)}
        folds = " of all folds" if any(group.overlap for group in groups) else ""
        which = f", with {min(seeds)} alone" if len(seeds) > 1 else ""
        console.print(f"the {n:,} images{folds}{which}; p is McNemar's, with Holm's correction")
        console.print(ranking_table({name: score(pooled[name]) for name in (best, *others)}, comparisons))
        console.print(selection_note(list(pooled.values())), soft_wrap=True)


def pooled_predictions(group: RunGroup, split: str) -> Predictions:
    """Return the predictions of all folds of a group, of its first seed: each image once.

    Raises:
        ValueError: See `load_run_predictions`.
    """
    first = min(map(_split_replicate, group.folders))[0]
    folds = {
        fold: folder for key, folder in group.folders.items() for seed, fold in [_split_replicate(key)] if seed == first
    }
    return concat_predictions([load_run_predictions(folds[fold], split) for fold in sorted(folds)])


def _split_replicate(key: str) -> tuple[str, str]:
    """Return the seeds and the fold of "seed=0 data.fold=1"."""
    parts = key.split()
    folds = [part for part in parts if part.startswith("data.fold=")]
    return " ".join(part for part in parts if part not in folds), " ".join(folds)


def load_run_groups(folder: Path, split: str) -> list[RunGroup]:
    """Group the finished runs of a multirun by all overrides but seed and fold.

    Returns:
        The groups, best mean accuracy first. Their names leave out the overrides that all groups share.

    Raises:
        ValueError: `folder` has no finished run, or a run has no score of `split`.
    """
    runs, counts = [], {}
    for run_dir, overrides in iterate_multirun(folder):
        result = read_result(run_dir)
        if result is None:
            continue
        if split not in result:
            raise ValueError(
                f"{run_dir / RESULT_FILE} has no score of split={split}: expected a split that the runs were scored on"
            )
        runs.append((overrides, result[split]["accuracy"], run_dir))
        counts[run_dir] = result[split]["n"]
    if not runs:
        raise ValueError(f"multirun={folder}: no finished run there: give the folder of a multirun")
    return group_runs(runs, counts)


def group_runs(
    runs: Iterable[tuple[Sequence[str], float, Path]], counts: Mapping[Path, int] | None = None
) -> list[RunGroup]:
    """Group runs by all overrides but seed and fold.

    Args:
        runs: The overrides of each run, its accuracy, and its folder.
        counts: The number of images that the run in each folder was scored on; None if it is not known.

    Returns:
        The groups, best mean accuracy first. Their names leave out the overrides that all groups share.
    """
    accuracies: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    folders: dict[tuple[str, ...], dict[str, Path]] = defaultdict(dict)
    for overrides, accuracy, folder in runs:
        replicate = [override for override in overrides if override.partition("=")[0] in _REPLICATE_KEYS]
        common = tuple(override for override in overrides if override not in replicate)
        accuracies[common][" ".join(replicate)], folders[common][" ".join(replicate)] = accuracy, folder
    shared = set.intersection(*map(set, accuracies)) if len(accuracies) > 1 else set()
    names = {
        common: " ".join(item for item in common if item not in shared) or " ".join(common) for common in accuracies
    }
    groups = [
        RunGroup(
            names[common],
            values,
            folders[common],
            {key: counts[folder] for key, folder in folders[common].items()} if counts else {},
        )
        for common, values in accuracies.items()
    ]
    return sorted(groups, key=lambda group: -group.mean)


def _shorten_paths(runs: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the folder that holds all runs, empty if they have none in common, and the name of each run in it."""
    try:
        folder = os.path.commonpath([Path(run).parent for run in runs])
    except ValueError:  # absolute and relative paths
        folder = ""
    return folder, {run: os.path.relpath(run, folder) if folder else run for run in runs}


def _list_paths(paths: Sequence[str], max_listed: int) -> str:
    listed = ", ".join(map(one_line, paths[:max_listed])) + (", …" if len(paths) > max_listed > 0 else "")
    return f"{len(paths)}: {listed}" if listed else str(len(paths))
