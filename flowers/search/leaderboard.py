"""The result of a search: a table of its trials, plots, and the command that repeats the best."""

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
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text as FigureText
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowers.evaluation.statistics import holm, mcnemar, selection_note
from flowers.evaluation.tables import plain
from flowers.runs.predictions import Predictions, concat_predictions, load_predictions
from flowers.runs.run_folder import PREDICTIONS_DIR
from flowers.runtime.files import atomic_write
from flowers.runtime.text import one_line, write_csv
from flowers.search.space import to_override
from flowers.search.study import Search

log = logging.getLogger(__name__)


TRIALS_FILE = "trials.csv"


_TABLE_ROWS = 20  # rows on the terminal


_STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


def finalize_search(search: Search) -> float:
    """Print the trials and the command that repeats the best one; write trials.csv, history.png and importances.png.

    Returns:
        The validation accuracy of the best trial.

    Raises:
        ValueError: No trial has finished.
    """
    by_state = defaultdict(list)
    for trial in search.trials():
        by_state[trial.state].append(trial)
    finished, failed = by_state[TrialState.COMPLETE], by_state[TrialState.FAIL]
    if not finished:
        raise ValueError(_no_trial_finished(failed, len(search.trials())))
    finished.sort(key=lambda trial: (-trial.user_attrs["accuracy"], trial.number))
    predictions = _comparable_predictions(finished)
    p_values = _p_values_against_best(predictions)
    trials = [*finished, *by_state[TrialState.PRUNED], *failed]
    rows = _csv_rows(trials, p_values)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(search.folder / TRIALS_FILE, [columns, *([row.get(name) for name in columns] for row in rows)])
    _print_trials(trials, p_values, search.folder)
    _plot_study(search)
    _log_outcome(search, finished, predictions, p_values, len(by_state[TrialState.RUNNING]))
    return float(finished[0].user_attrs["accuracy"])


def _no_trial_finished(failed: Sequence[FrozenTrial], count: int) -> str:
    if not failed:
        return f"none of the {count} trials has finished: start the search again, in the folder of each machine"
    reason = failed[0].user_attrs["traceback"].strip().split("\n")[-1]
    which = f"all {count}" if len(failed) == count else f"{len(failed)} of {count}"
    return f"{which} trials failed; trial {failed[0].number}: {one_line(reason)}"


def _comparable_predictions(finished: Sequence[FrozenTrial]) -> dict[int, Predictions]:
    """Return the predictions of the best trial and of the others that were scored on the same images, by number.

    It is empty if the best trial ran on another machine.
    """
    found: dict[int, Predictions] = {}
    for trial in finished:
        with suppress(ValueError):  # the trial ran on another machine
            predictions = _load_trial_predictions(trial)
            if trial is finished[0] or (found and predictions.paths == found[finished[0].number].paths):
                found[trial.number] = predictions
    return found


def _p_values_against_best(predictions: Mapping[int, Predictions]) -> dict[int, float]:
    """Return McNemar's p of each trial against the first one, by number, with Holm's correction."""
    if not predictions:
        return {}
    best, *others = predictions.values()
    p_values = holm([mcnemar(other, best)["p"] for other in others])
    return dict(zip(list(predictions)[1:], p_values, strict=True))


def _load_trial_predictions(trial: FrozenTrial) -> Predictions:
    files = sorted(Path(trial.user_attrs["folder"]).glob(f"**/{PREDICTIONS_DIR}/val.csv"))
    if not files:
        raise ValueError(f"{trial.user_attrs['folder']} is not here")
    return concat_predictions([load_predictions(file) for file in files])


def _csv_rows(trials: Sequence[FrozenTrial], p_values: Mapping[int, float]) -> list[dict[str, Any]]:
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        low, high = attributes.get("interval", ("", ""))
        row = {"trial": trial.number, "state": _STATES[trial.state], "accuracy": attributes.get("accuracy", "")}
        row |= {"low": low, "high": high, "n": attributes.get("n", ""), "p": p_values.get(trial.number, "")}
        row |= {"seconds": attributes.get("seconds", ""), "folder": attributes.get("folder", "")}
        rows.append(row | trial.params)
    return rows


def _print_trials(trials: Sequence[FrozenTrial], p_values: Mapping[int, float], folder: Path) -> None:
    keys = sorted({key for trial in trials for key in trial.params})
    title = Text(f"{len(trials)} trials in {one_line(folder)}, best first")
    table = Table("trial", *keys, "accuracy", "95 % interval", "p", title=title, title_justify="left", box=box.SIMPLE)
    for trial in trials[:_TABLE_ROWS]:
        values = [plain(f"{value:.4g}" if isinstance(value, float) else value) for value in map(trial.params.get, keys)]
        if trial.state == TrialState.COMPLETE:
            low, high = trial.user_attrs["interval"]
            p = f"{p_values[trial.number]:.3g}" if trial.number in p_values else ""
            table.add_row(
                str(trial.number), *values, f"{trial.user_attrs['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", p
            )
        else:
            epoch = f", epoch {trial.user_attrs['pruned']}" if "pruned" in trial.user_attrs else ""
            table.add_row(str(trial.number), *values, _STATES[trial.state] + epoch)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    if len(trials) > _TABLE_ROWS:
        log.info("and %d more trials: %s lists all", len(trials) - _TABLE_ROWS, folder / TRIALS_FILE)


def _plot_study(search: Search) -> None:
    study = optuna.load_study(study_name=search.name, storage=search.storage)
    with warnings.catch_warnings():  # Optuna calls these plots experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        axes = {"history": plots.plot_optimization_history(study, target_name="accuracy")}
        if len({trial.value for trial in search.trials() if trial.state == TrialState.COMPLETE}) > 1 and search.space:
            forest = FanovaImportanceEvaluator(seed=0)
            axes["importances"] = plots.plot_param_importances(study, evaluator=forest, target_name="accuracy")
    for name, axis in axes.items():
        assert isinstance(axis.figure, Figure)
        for text in axis.figure.findobj(match=FigureText):
            text.set_parse_math(False)  # a value may hold a dollar sign
        with atomic_write(search.folder / f"{name}.png") as beside:
            axis.figure.savefig(beside, format="png", dpi=120, bbox_inches="tight")
        pyplot.close(axis.figure)


def _log_outcome(
    search: Search,
    finished: Sequence[FrozenTrial],
    predictions: Mapping[int, Predictions],
    p_values: Mapping[int, float],
    running: int,
) -> None:
    best = finished[0]
    low, high = best.user_attrs["interval"]
    log.info("best trial: %d, accuracy %.4f (95 %% interval %.4f to %.4f)", best.number, best.value, low, high)
    if p_values:
        similar = sum(p >= 0.05 for p in p_values.values())
        log.info(
            "%d of the other %d trials cannot be told apart from it (McNemar's p >= 0.05, Holm's correction)",
            similar,
            len(p_values),
        )
    if len(predictions) > 1:
        log.info("%s; data.test_fraction keeps some for a test", selection_note(list(predictions.values())))
    else:  # the others ran on other machines, or on other images
        log.info(
            "its accuracy is optimistic: it was selected on these images; data.test_fraction keeps some for a test"
        )
    if running:
        log.info("%d trials were started in other folders and have not finished: start the search there again", running)
    chosen = [*search.fixed, *(to_override(key, value) for key, value in best.params.items())]
    log.info("repeat it with: %s", shlex.join(["python", "-m", "flowers.train", *chosen]))
