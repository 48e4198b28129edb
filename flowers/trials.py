"""Trains a trial of a search, in this process where it is short, else in one of its own; what was cut goes on."""

import ctypes
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from hydra import compose
from hydra.core.utils import env_override
from omegaconf import DictConfig
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from flowers import program, pruning, quiet, results, space
from flowers.overrides import hydra, quoted
from flowers.run import STARTED
from flowers.search import Search
from flowers.train import train

Told = Mapping[str, Any] | None  # what a trial's `Pruning` is to know; None where there is none

log = logging.getLogger(__name__)


class TrialError(Exception):
    """How a process of a trial's own ended."""


def run(study: Search, trial: optuna.Trial, pruner: Mapping[str, Any], lock: int) -> None:
    """Trains a trial, or what is left of it, and notes in the study how good it is, or how it failed.

    Args:
        study, trial: see `Search.next`.
        pruner: its configuration.
        lock: a file descriptor that a process of the trial's own holds as long as it lives.
    """
    drawn = study.draw(trial)
    start = time.perf_counter()
    values = " ".join(space.shown(key, value) for key, value in trial.params.items())
    name = f"trial {trial.number}  {values}"
    try:
        if study.is_stopped(trial):
            raise optuna.TrialPruned
        told = None if isinstance(study.pruner, NopPruner) else {**study.told(trial), "pruner": pruner}
        scored = _scored([*study.fixed, *drawn], study.folder_of(trial.number), told, lock)
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


def tidy(study: Search, keep: int | None) -> None:
    """Removes the checkpoints of this folder's finished trials but for those of the `keep` best."""
    done = [each for each in study.trials() if each.state.is_finished() and study.is_own(each)]
    done.sort(key=lambda each: each.user_attrs.get("accuracy", 0.0), reverse=True)
    for each in done[keep:] if keep is not None else []:
        for checkpoints in study.folder_of(each.number).glob("**/checkpoints"):
            shutil.rmtree(checkpoints)


def _scored(settings: Sequence[str], folder: Path, told: Told, lock: int) -> dict[str, Any]:
    """Accuracy with its interval, number of photos judged, seconds and folder; trains what is not trained yet.

    With data.folds, and no data.fold, a trial is a run a fold: the accuracy is their mean, the interval that of all
    their photos together.
    """
    with hydra():
        cfg = compose("train", list(settings))
    epochs = cfg.head.epochs + cfg.finetune.epochs
    is_one = not cfg.data.get("folds") or any(  # shards have their split inside
        line.startswith("data.fold=") for line in settings
    )
    folds = {folder: []} if is_one else {folder / f"fold-{k}": [f"data.fold={k}"] for k in range(cfg.data.folds)}
    for place, (run_dir, fold) in enumerate(folds.items()):
        if not (run_dir / results.RESULT).is_file():
            _train(cfg, [*settings, *fold], run_dir, told and {**told, "offset": place * epochs}, lock)
    return _joint([results.load(run_dir / results.RESULT) for run_dir in folds]) | {"folder": str(folder)}


def _joint(scored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [result["val"]["accuracy"] for result in scored]
    n = sum(result["val"]["n"] for result in scored)
    correct = round(sum(result["val"]["accuracy"] * result["val"]["n"] for result in scored))
    return {
        "accuracy": sum(accuracies) / len(accuracies),
        "interval": results.interval(correct, n),
        "n": n,
        "seconds": sum(sum(result["cost"]["seconds"].values()) for result in scored),
    }


def _train(cfg: DictConfig, settings: Sequence[str], run_dir: Path, told: Told, lock: int) -> None:
    overrides = [*settings, f"hydra.run.dir={quoted(run_dir)}"]
    if told:
        overrides.append("+callbacks.pruning._target_=flowers.pruning.Pruning")
    resume = [f"resume={quoted(run_dir)}"] if (run_dir / STARTED).is_file() else []
    with env_override({pruning.TOLD: json.dumps(told)} if told else {}):
        # An epoch on kept features takes less time than a process needs to start, and than pictures of it.
        if cfg.finetune.epochs == 0 and cfg.head.views and cfg.trainer.devices in (1, "1"):
            bare = ["~callbacks.pictures"] if "pictures" in cfg.callbacks else []
            _train_here([*overrides, *bare, *resume])
        else:
            _train_apart(resume or overrides, run_dir, lock)


def _train_here(overrides: Sequence[str]) -> None:
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        quiet.silence()
        try:
            train(cfg)
        except Exception as error:
            program.write_traceback(error)
            raised.append(error)  # Hydra would print it

    with _own_log(), hydra() as running:
        running.run("train", task, [*overrides, "hydra/job_logging=file"])
    if raised:
        raise raised[0]


@contextmanager
def _own_log() -> Iterator[None]:
    """The block may set up its own logging; after it, all is as before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def _train_apart(overrides: Sequence[str], run_dir: Path, lock: int) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    said = run_dir / "output.log"
    log.info("training in a process of its own: %s", said)
    with said.open("ab") as file:
        command = [sys.executable, "-m", "flowers.train", *overrides]
        done = subprocess.run(  # there are no other threads that train
            command, stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock], preexec_fn=_follow, check=False
        )
    if done.returncode:
        lines = said.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        raise TrialError("\n".join([f"its process ended with {done.returncode}", *lines]))


def _follow() -> None:
    """Has the calling process be told to end where its parent does, even killed; Linux alone can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
