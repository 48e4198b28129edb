"""Run the trials of a search, each in this process or in its own, and resume them."""

import logging
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import env_override
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from flowers.evaluation.statistics import wilson_interval
from flowers.runs.run_folder import START_FILE, read_result
from flowers.runtime.interrupt import resumable
from flowers.runtime.launch import parent_environment
from flowers.runtime.text import shell_setting
from flowers.search.leaderboard import finalize_search
from flowers.search.pruning import PruningContext
from flowers.search.space import format_value
from flowers.search.study import Search, lock_directory, open_manifest
from flowers.settings.config import compose_settings
from flowers.settings.overrides import quote_override
from flowers.settings.schema.programs import SweepSettings
from flowers.settings.schema.training import Shards, TrainSettings
from flowers.training.in_process import group_override, train_in_process

log = logging.getLogger(__name__)


class TrialError(Exception):
    """The process of a trial has failed; the text holds the end of its output."""


def run_search(settings: SweepSettings) -> float:
    """Run the remaining trials of the search in `settings.sweep`.

    Returns:
        The best trial's validation accuracy.

    Raises:
        ValueError: The settings cannot be searched, do not fit the folder or the study, or no trial finished.
    """
    options, folder = settings.sweep, Path(settings.sweep.folder).resolve()
    with lock_directory(folder) as lock, resumable(f"python -m flowers.sweep {shell_setting('sweep.folder', folder)}"):
        manifest = open_manifest(folder, options.settings, options.storage is not None, options.options)
        sampler, pruner = options.sampler.build(), options.pruner.build()
        search = Search(folder, manifest, options.storage, options.study, sampler, pruner, options.seed)
        while (trial := search.next(options.trials)) is not None:
            run_trial(search, trial, options.pruner.to_dict(), lock)
            delete_old_checkpoints(search, options.keep)
        return finalize_search(search)


def run_trial(search: Search, trial: optuna.Trial, pruner: Mapping[str, Any], lock: int) -> None:
    """Train a trial, or what remains of it, and record its score or its failure in the study.

    Args:
        search: The search.
        trial: See `Search.next`.
        pruner: The pruner's configuration.
        lock: A file descriptor that the trial's own process inherits, see `lock_directory`.
    """
    settings = [*search.fixed, *search.sample(trial)]
    start = time.perf_counter()
    values = " ".join(format_value(key, value) for key, value in trial.params.items())
    name = f"trial {trial.number}  {values}"
    context = None
    if not isinstance(search.pruner, NopPruner):
        context = PruningContext(search.url, search.name, trial.number, pruner)
    try:
        if search.is_pruned(trial.number):  # before the search was interrupted
            raise optuna.TrialPruned
        scores = _score_trial(settings, search.folder_of(trial.number), context, lock)
    except Exception as error:
        if search.is_pruned(trial.number):
            log.info("%s  stopped early  %.1f s", name, time.perf_counter() - start)
            trial.study.tell(trial, state=TrialState.PRUNED)
            return
        trial.set_user_attr("traceback", "".join(traceback.format_exception(error))[-4000:])
        trial.study.tell(trial, state=TrialState.FAIL)
        log.warning("%s  failed: %s", name, (str(error).split("\n")[-1] or type(error).__name__))
        return
    for key, value in scores.items():
        trial.set_user_attr(key, value)
    trial.study.tell(trial, scores["accuracy"])
    low, high = scores["interval"]
    seconds = time.perf_counter() - start
    log.info("%s  accuracy %.4f (%.4f to %.4f)  %.1f s", name, scores["accuracy"], low, high, seconds)


def delete_old_checkpoints(search: Search, keep: int | None) -> None:
    """Delete the checkpoints of this folder's finished trials, except those of the `keep` best; None keeps all."""
    finished = [trial for trial in search.trials() if trial.state.is_finished() and search.is_own(trial)]
    finished.sort(key=lambda trial: trial.user_attrs.get("accuracy", 0.0), reverse=True)
    for trial in finished[keep:] if keep is not None else []:
        for checkpoints in search.folder_of(trial.number).glob("**/checkpoints"):
            shutil.rmtree(checkpoints)


def _score_trial(settings: Sequence[str], folder: Path, context: PruningContext | None, lock: int) -> dict[str, Any]:
    """Train the runs of a trial that have no result yet, and pool their results.

    With `data.folds` and no `data.fold`, a trial is one run per fold: its accuracy is their mean, and its interval that
    of all validation images together.
    """
    trained = compose_settings(settings, TrainSettings)
    epochs = trained.head.epochs + trained.finetune.epochs
    folds = 0 if isinstance(trained.data, Shards) else trained.data.folds
    is_one_run = not folds or any(line.startswith("data.fold=") for line in settings)
    runs = {folder: []} if is_one_run else {folder / f"fold-{k}": [f"data.fold={k}"] for k in range(folds)}
    for index, (run_dir, fold) in enumerate(runs.items()):
        if read_result(run_dir) is None:
            run_context = context and context._replace(first_step=index * epochs)
            _train_run(trained, [*settings, *fold], folder.parents[1], run_dir, run_context, lock)
    results = [result for run_dir in runs if (result := read_result(run_dir))]
    return _pool_results(results) | {"folder": str(folder)}


def _pool_results(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [result["val"]["accuracy"] for result in results]
    n = sum(result["val"]["n"] for result in results)
    correct = round(sum(result["val"]["accuracy"] * result["val"]["n"] for result in results))
    return {
        "accuracy": sum(accuracies) / len(accuracies),
        "interval": wilson_interval(correct, n),
        "n": n,
        "seconds": sum(sum(result["cost"]["seconds"].values()) for result in results),
    }


def _train_run(
    trained: TrainSettings,
    settings: Sequence[str],
    folder: Path,
    run_dir: Path,
    context: PruningContext | None,
    lock: int,
) -> None:
    overrides = [group_override(folder), *settings, f"hydra.run.dir={quote_override(run_dir)}"]
    if context:
        overrides.append("+callbacks.pruning._target_=flowers.search.pruning.PruningCallback")
    resume = [f"resume={quote_override(run_dir)}"] if (run_dir / START_FILE).is_file() else []
    with env_override(context.to_environment() if context else {}):
        # An epoch on cached features takes less time than starting a process, and than the images of the logger.
        if trained.finetune.epochs == 0 and trained.head.cached_views and trained.trainer.devices in (1, "1"):
            has_images = trained.callbacks is not None and trained.callbacks.image_logger is not None
            without_images = ["~callbacks.image_logger"] if has_images else []
            train_in_process([*overrides, *without_images, *resume])
        else:
            _train_in_subprocess(resume or overrides, run_dir, lock)


def _train_in_subprocess(overrides: Sequence[str], run_dir: Path, lock: int) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    output = run_dir / "output.log"
    log.info("training in a separate process, which writes to %s", output)
    with output.open("ab") as file:
        process = subprocess.run(
            [sys.executable, "-m", "flowers.train", *overrides],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | parent_environment(),
            pass_fds=[lock],
            check=False,
        )
    if process.returncode:
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        raise TrialError("\n".join([f"the trial's process ended with code {process.returncode}", *lines]))
