"""Run the trials of a search, in this process or in one of their own, and resume them."""

import ctypes
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra import compose
from hydra.core.utils import env_override
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from flowers.evaluation.statistics import wilson_interval
from flowers.runtime.config import hydra_context, quote_override, to_container
from flowers.runtime.files import read_json
from flowers.runtime.logging import configure_logging, isolated_logging, write_traceback
from flowers.runtime.run_folder import RESULT_FILE, START_FILE, resumable
from flowers.search.pruning import PRUNING_ENV
from flowers.search.space import format_value
from flowers.search.study import Search
from flowers.training.experiment import run_training

log = logging.getLogger(__name__)


def run_search(cfg: DictConfig) -> float:
    """Runs the trials that are left of the search that `cfg` describes; returns the best one's accuracy."""

    try:
        from flowers.search.leaderboard import finalize_search
        from flowers.search.study import Search, lock_directory, open_manifest
    except ImportError as error:
        raise ValueError(f"a search needs {error.name}: pip install 'flowers[sweep]'") from error

    asked, folder = cfg.sweep, Path(cfg.sweep.folder).resolve()
    with lock_directory(folder) as lock, resumable(f"python -m flowers.sweep sweep.folder={folder}"):
        begun = open_manifest(folder, list(asked.settings), asked.storage is not None)
        drawing = instantiate(asked.sampler), instantiate(asked.pruner), asked.seed
        study = Search(folder, begun, asked.storage, asked.study, *drawing)
        while (trial := study.next(asked.trials)) is not None:
            run_trial(study, trial, to_container(asked.pruner), lock)
            delete_old_checkpoints(study, asked.keep)
        return finalize_search(study)


PruningContext = Mapping[str, Any] | None  # what a trial's `Pruning` is to know; None where there is none


class TrialError(Exception):
    """How a process of a trial's own ended."""


def run_trial(study: Search, trial: optuna.Trial, pruner: Mapping[str, Any], lock: int) -> None:
    """Trains a trial, or what is left of it, and notes in the study how good it is, or how it failed.

    Args:
        study, trial: see `Search.next`.
        pruner: its configuration.
        lock: a file descriptor that a process of the trial's own holds as long as it lives.
    """
    drawn = study.draw(trial)
    start = time.perf_counter()
    values = " ".join(format_value(key, value) for key, value in trial.params.items())
    name = f"trial {trial.number}  {values}"
    try:
        if study.is_stopped(trial):
            raise optuna.TrialPruned
        told = None if isinstance(study.pruner, NopPruner) else {**study.pruning_context(trial), "pruner": pruner}
        scored = _score_trial([*study.fixed, *drawn], study.folder_of(trial.number), told, lock)
    except Exception as error:
        if study.is_stopped(trial):
            log.info("%s  stopped early  %.1f s", name, time.perf_counter() - start)
            trial.study.tell(trial, state=TrialState.PRUNED)
            return
        trial.set_user_attr("traceback", "".join(traceback.format_exception(error))[-4000:])
        trial.study.tell(trial, state=TrialState.FAIL)
        log.warning("%s  failed: %s", name, (str(error).split("\n")[-1] or type(error).__name__))
        return
    for key, value in scored.items():
        trial.set_user_attr(key, value)
    trial.study.tell(trial, scored["accuracy"])
    low, high = scored["interval"]
    seconds = time.perf_counter() - start
    log.info("%s  accuracy %.4f (%.4f to %.4f)  %.1f s", name, scored["accuracy"], low, high, seconds)


def delete_old_checkpoints(study: Search, keep: int | None) -> None:
    """Removes the checkpoints of this folder's finished trials but for those of the `keep` best."""
    done = [each for each in study.trials() if each.state.is_finished() and study.is_own(each)]
    done.sort(key=lambda each: each.user_attrs.get("accuracy", 0.0), reverse=True)
    for each in done[keep:] if keep is not None else []:
        for checkpoints in study.folder_of(each.number).glob("**/checkpoints"):
            shutil.rmtree(checkpoints)


def _score_trial(settings: Sequence[str], folder: Path, told: PruningContext, lock: int) -> dict[str, Any]:
    """Accuracy with its interval, number of photos judged, seconds and folder; trains what is not trained yet.

    With data.folds, and no data.fold, a trial is a run a fold: the accuracy is their mean, the interval that of all
    their photos together.
    """
    with hydra_context():
        cfg = compose("train", list(settings))
    epochs = cfg.head.epochs + cfg.finetune.epochs
    is_one = not cfg.data.get("folds") or any(  # shards have their split inside
        line.startswith("data.fold=") for line in settings
    )
    folds = {folder: []} if is_one else {folder / f"fold-{k}": [f"data.fold={k}"] for k in range(cfg.data.folds)}
    for place, (run_dir, fold) in enumerate(folds.items()):
        if not (run_dir / RESULT_FILE).is_file():
            _train_run(cfg, [*settings, *fold], run_dir, told and {**told, "offset": place * epochs}, lock)
    return _pool_folds([read_json(run_dir / RESULT_FILE) for run_dir in folds]) | {"folder": str(folder)}


def _pool_folds(scored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [result["val"]["accuracy"] for result in scored]
    n = sum(result["val"]["n"] for result in scored)
    correct = round(sum(result["val"]["accuracy"] * result["val"]["n"] for result in scored))
    return {
        "accuracy": sum(accuracies) / len(accuracies),
        "interval": wilson_interval(correct, n),
        "n": n,
        "seconds": sum(sum(result["cost"]["seconds"].values()) for result in scored),
    }


def _train_run(cfg: DictConfig, settings: Sequence[str], run_dir: Path, told: PruningContext, lock: int) -> None:
    overrides = [*settings, f"hydra.run.dir={quote_override(run_dir)}"]
    if told:
        overrides.append("+callbacks.pruning._target_=flowers.search.pruning.PruningCallback")
    resume = [f"resume={quote_override(run_dir)}"] if (run_dir / START_FILE).is_file() else []
    with env_override({PRUNING_ENV: json.dumps(told)} if told else {}):
        # An epoch on kept features takes less time than a process needs to start, and than pictures of it.
        if cfg.finetune.epochs == 0 and cfg.head.cached_views and cfg.trainer.devices in (1, "1"):
            bare = ["~callbacks.image_logger"] if "image_logger" in cfg.callbacks else []
            _train_in_process([*overrides, *bare, *resume])
        else:
            _train_in_subprocess(resume or overrides, run_dir, lock)


def _train_in_process(overrides: Sequence[str]) -> None:
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        configure_logging()
        try:
            run_training(cfg)
        except Exception as error:
            write_traceback(error)
            raised.append(error)  # Hydra would print it

    with isolated_logging(), hydra_context() as running:
        running.run("train", task, [*overrides, "hydra/job_logging=file"])
    if raised:
        raise raised[0]


def _train_in_subprocess(overrides: Sequence[str], run_dir: Path, lock: int) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    said = run_dir / "output.log"
    log.info("training in a process of its own: %s", said)
    with said.open("ab") as file:
        command = [sys.executable, "-m", "flowers.train", *overrides]
        done = subprocess.run(  # there are no other threads that train
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            preexec_fn=_terminate_with_parent,
            check=False,
        )
    if done.returncode:
        lines = said.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        raise TrialError("\n".join([f"its process ended with {done.returncode}", *lines]))


def _terminate_with_parent() -> None:
    """Has the calling process be told to end where its parent does, even killed; Linux alone can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
