"""The result of a search: a table of its trials, plots, and the command that repeats the best."""

import csv
import io
import logging
import shlex
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as pictures
from rich import box
from rich.console import Console
from rich.table import Table

from flowers.evaluation.predictions import Predictions, load_predictions
from flowers.evaluation.statistics import mcnemar
from flowers.runtime.files import atomic_write, atomic_write_text
from flowers.runtime.run_folder import PREDICTIONS_DIR
from flowers.search.space import to_override
from flowers.search.study import Search

log = logging.getLogger(__name__)


TRIALS_FILE = "trials.csv"


_TABLE_ROWS = 20  # rows on the terminal


_STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


def finalize_search(search: Search) -> float:
    """Prints the table and the command that repeats the best; writes trials.csv and pictures; returns its accuracy.

    Raises ValueError where no trial came to its end.
    """
    by_state = defaultdict(list)
    for trial in search.trials():
        by_state[trial.state].append(trial)
    done, failed = by_state[TrialState.COMPLETE], by_state[TrialState.FAIL]
    if not done:
        raise ValueError(_no_trial_finished(failed, len(search.trials())))
    done.sort(key=lambda trial: (-trial.user_attrs["accuracy"], trial.number))
    against = _p_values_against_best(done)
    trials = [*done, *by_state[TrialState.PRUNED], *failed]
    text = io.StringIO()
    rows = _csv_rows(trials, against)
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(search.folder / TRIALS_FILE, text.getvalue())
    _print_trials(trials, against, search.folder)
    _plot_study(search)
    _log_outcome(search, done, against, len(by_state[TrialState.RUNNING]))
    return float(done[0].user_attrs["accuracy"])


def _no_trial_finished(failed: Sequence[FrozenTrial], count: int) -> str:
    if not failed:
        return f"none of {count} trials has come to its end: start again, here or where they were begun"
    reason = failed[0].user_attrs["traceback"].strip().split("\n")[-1]
    all_of = "all" if len(failed) == count else "none ended and"
    return f"{all_of} {len(failed)} trials failed; trial {failed[0].number}: {reason}"


def _p_values_against_best(done: Sequence[FrozenTrial]) -> dict[int, float]:
    """McNemar's p of each trial beside the best, by number, where both judged the same photos and can be read here."""
    best, *others = done
    compared: dict[int, float] = {}
    with suppress(ValueError):  # the best lies in another machine's folder
        said = _load_trial_predictions(best)
        for trial in others:
            with suppress(ValueError):  # this one does, or it had another split
                compared[trial.number] = float(mcnemar(_load_trial_predictions(trial), said)["p"])
    return compared


def _load_trial_predictions(trial: FrozenTrial) -> Predictions:
    files = sorted(Path(trial.user_attrs["folder"]).glob(f"**/{PREDICTIONS_DIR}/val.csv"))
    if not files:
        raise ValueError(f"{trial.user_attrs['folder']} is not here")
    folds = [load_predictions(file) for file in files]
    paths = [path for fold in folds for path in fold.paths]
    labels, logits = (torch.cat([getattr(fold, name) for fold in folds]) for name in ("labels", "logits"))
    return Predictions(paths, labels, logits, folds[0].classes)


def _csv_rows(trials: Sequence[FrozenTrial], against: Mapping[int, float]) -> list[dict[str, Any]]:
    rows = []
    for trial in trials:
        told = trial.user_attrs
        low, high = told.get("interval", ("", ""))
        row = {"trial": trial.number, "state": _STATES[trial.state], "accuracy": told.get("accuracy", "")}
        row |= {"low": low, "high": high, "n": told.get("n", ""), "p": against.get(trial.number, "")}
        row |= {"seconds": told.get("seconds", ""), "folder": told.get("folder", "")}
        rows.append(row | trial.params)
    return rows


def _print_trials(trials: Sequence[FrozenTrial], against: Mapping[int, float], folder: Path) -> None:
    drawn = sorted({key for trial in trials for key in trial.params})
    title = f"{len(trials)} trials in {folder}, best first"
    table = Table("trial", *drawn, "accuracy", "95 % interval", "p", title=title, title_justify="left", box=box.SIMPLE)
    for trial in trials[:_TABLE_ROWS]:
        values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in map(trial.params.get, drawn)]
        if trial.state == TrialState.COMPLETE:
            low, high = trial.user_attrs["interval"]
            p = f"{against[trial.number]:.3g}" if trial.number in against else ""
            table.add_row(
                str(trial.number), *values, f"{trial.user_attrs['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", p
            )
        else:
            epoch = f", epoch {trial.user_attrs['pruned']}" if "pruned" in trial.user_attrs else ""
            table.add_row(str(trial.number), *values, _STATES[trial.state] + epoch)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    if len(trials) > _TABLE_ROWS:
        log.info("and %d more: all are in %s", len(trials) - _TABLE_ROWS, folder / TRIALS_FILE)


def _plot_study(search: Search) -> None:
    study = optuna.load_study(study_name=search.name, storage=search.storage)
    with warnings.catch_warnings():  # its pictures are experimental, it says
        warnings.simplefilter("ignore", ExperimentalWarning)
        axes = {"history": pictures.plot_optimization_history(study, target_name="accuracy")}
        if len({trial.value for trial in search.trials() if trial.state == TrialState.COMPLETE}) > 1 and search.space:
            forest = FanovaImportanceEvaluator(seed=0)
            axes["importances"] = pictures.plot_param_importances(study, evaluator=forest, target_name="accuracy")
    for name, axis in axes.items():
        assert isinstance(axis.figure, Figure)
        with atomic_write(search.folder / f"{name}.png") as beside:
            axis.figure.savefig(beside, format="png", dpi=120, bbox_inches="tight")
        pyplot.close(axis.figure)


def _log_outcome(search: Search, done: Sequence[FrozenTrial], against: Mapping[int, float], running: int) -> None:
    best = done[0]
    low, high = best.user_attrs["interval"]
    log.info("the best is trial %d: accuracy %.4f (95 %% interval %.4f to %.4f)", best.number, best.value, low, high)
    if against:
        alike = sum(p >= 0.05 for p in against.values())
        log.info(
            "%d of the other %d cannot be told from it (McNemar's p >= 0.05 on the same photos)", alike, len(against)
        )
    log.info(
        "chosen on these photos, it is better on them than on new ones: data.test_fraction keeps some to judge it by"
    )
    if running:
        log.info("%d trials are begun in other folders: started again there, they are ended", running)
    chosen = [*search.fixed, *(to_override(key, value) for key, value in best.params.items())]
    log.info("again: %s", shlex.join(["python", "-m", "flowers.train", *chosen]))
