"""A hyperparameter search: an Optuna study, and the folder where this machine runs its trials."""

import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from flowers.runtime.text import mask_password
from flowers.search.manifest import SearchManifest, read_manifest
from flowers.search.space import SearchSpace, first_point, parse_search_space, sample
from flowers.settings.config import compose_settings
from flowers.settings.overrides import check_overrides
from flowers.settings.schema.training import TrainSettings

log = logging.getLogger(__name__)

STUDY_FILE = "study.db"

# Settings that may differ between machines that share a study.
_MACHINE_KEYS = (
    "data.root",
    "data.table",
    "data.num_workers",
    "data.decoded_cache_fraction",
    "model.weights",
    "features.",
    "logger",
    "trainer",
)


def open_manifest(folder: Path, settings: Sequence[str], shared: bool, options: Sequence[str] = ()) -> SearchManifest:
    """Write the manifest of a new search, or read that of an earlier start and change to its working directory.

    Args:
        folder: The folder of the search.
        settings: The overrides of the trials; empty to take those of the earlier start.
        shared: Whether `sweep.storage` is given.
        options: The overrides of the search itself.

    Raises:
        ValueError: No trial can be made from the settings, or they differ from those of the earlier start. Nothing is
            written then.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        _check_settings(settings)
        manifest = SearchManifest(uuid.uuid4().hex, str(Path.cwd()), list(settings), shared, list(options))
        manifest.save(folder)
        return manifest
    if settings and list(settings) != manifest.settings:
        raise ValueError(
            f"{folder} holds a search over {' '.join(manifest.settings)}: give those settings, or none to resume it, "
            "or another sweep.folder"
        )
    if shared != manifest.shared:
        with_or_without = "with" if manifest.shared else "without"
        raise ValueError(f"{folder} was started {with_or_without} sweep.storage: resume it {with_or_without} one")
    with suppress(OSError):  # relative paths keep their meaning where that folder still exists
        os.chdir(manifest.cwd)
    return manifest


def _check_settings(settings: Sequence[str]) -> None:
    fixed, space = parse_search_space(settings)
    if not space:
        raise ValueError("nothing to search for: give at least one key several values: scheduler=constant,cosine")
    # The values to be sampled.
    compose_settings(check_overrides([*fixed, *first_point(space)], "train"), TrainSettings)


@contextmanager
def lock_directory(folder: Path) -> Iterator[int]:
    """Lock a folder against other processes, waiting for the lock if necessary.

    Yields:
        The lock's file descriptor. A child process that inherits it keeps the folder locked as long as it lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process uses %s: waiting for it to end", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


class Search:
    """A study, of which this folder runs some or all trials.

    Args:
        folder: Where this machine runs its trials; locked by `lock_directory`.
        manifest: See `open_manifest`.
        url: The URL of the study's database; None for a file in the folder.
        name: The name of the study in the database; it is created if necessary.
        sampler: Makes a sampler from `seed=`. Each trial gets its own, so that a resumed search samples the same values
            as an uninterrupted one.
        pruner: Decides which trials stop early.
        seed: The random seed of the samplers.

    Raises:
        ValueError: The database cannot be opened, or the study has other settings.
    """

    def __init__(
        self,
        folder: Path,
        manifest: SearchManifest,
        url: str | None,
        name: str,
        sampler: Callable[..., BaseSampler],
        pruner: BasePruner,
        seed: int,
    ) -> None:
        self.folder, self.owner = folder, manifest.owner
        self.url, self.name = url or f"sqlite:///{folder / STUDY_FILE}", name
        self.fixed, self.space = parse_search_space(manifest.settings)
        self.sampler, self.pruner, self.seed = sampler, pruner, seed
        self.storage, self._study = _open_study(self.url, name)
        key = _study_key(self.fixed, self.space)
        if self._study.user_attrs.get("search", key) != key:
            raise ValueError(
                f"sweep.study={name}: the study in {mask_password(self.url)} is of another search: "
                "give its settings, or another sweep.study"
            )
        self._study.set_user_attr("search", key)
        self._study_id = self.storage.get_study_id_from_name(name)
        # The lock is held, so no process runs these any more.
        self._interrupted = [
            trial.number for trial in self.trials() if trial.state == TrialState.RUNNING and self.is_own(trial)
        ]

    def trials(self) -> list[FrozenTrial]:
        """Return the trials so far, of all machines, by number."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if "surplus" not in trial.user_attrs]

    def folder_of(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / "trials" / str(number)

    def is_own(self, trial: FrozenTrial) -> bool:
        """Return whether the trial was started in this folder."""
        return bool(trial.user_attrs["owner"] == self.owner)

    def next(self, count: int) -> Trial | None:
        """Return an interrupted trial of this folder, else a new one, or None if all machines have `count` in all."""
        if self._interrupted:
            return self._attach(self._interrupted.pop(0))
        if len(self.trials()) >= count:
            return None
        # One transaction, where `study.ask` takes two: a trial never exists without its owner.
        template = create_trial(state=TrialState.RUNNING, user_attrs={"owner": self.owner})
        number = self.storage.get_trial(self.storage.create_new_trial(self._study_id, template)).number
        trial = self._attach(number)
        if sum(other.number < number for other in self.trials()) >= count:  # another machine was faster
            trial.set_user_attr("surplus", True)
            self._study.tell(number, state=TrialState.FAIL)
            return None
        return trial

    def sample(self, trial: Trial) -> list[str]:
        """Sample the trial's values, as overrides besides the fixed ones."""
        return sample(trial, self.space)

    def is_pruned(self, number: int) -> bool:
        """Return whether `PruningCallback` has stopped the trial."""
        return any("pruned" in trial.user_attrs for trial in self.trials() if trial.number == number)

    def _attach(self, number: int) -> Trial:
        sampler = self.sampler(seed=self.seed * 1_000_003 + number)
        study = optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler, pruner=self.pruner)
        return attach_trial(study, self.storage, number)


def open_storage(url: str) -> BaseStorage:
    """Open the database of a study, and silence Optuna's log messages: the search logs the same facts."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A connection is closed after each use. Those of a pool stay open, of which Python 3.13 warns.
    return get_storage(RDBStorage(url, engine_kwargs={"poolclass": NullPool}))


def attach_trial(study: optuna.Study, storage: BaseStorage, number: int) -> Trial:
    """Return the running trial with this number, which another process may have started.

    Optuna has no higher-level function for this: `study.ask` always starts a trial, and the constructor of `Trial`
    needs an id, which only the storage knows. tests/unit/search/test_study.py checks what is assumed here.
    """
    study.get_trials(deepcopy=False)  # the storage's cache must know the trial before its values can be set
    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def _open_study(url: str, name: str, tries: int = 5) -> tuple[BaseStorage, optuna.Study]:
    """Open the database and the study, creating them if necessary.

    If two machines create them at the same moment, the database refuses one of them, which tries again.
    """
    try:
        storage = open_storage(url)
        return storage, optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    except Exception as error:  # from the database's driver, or wrapped by Optuna
        if tries > 1 and (isinstance(error, DBAPIError) or isinstance(error.__cause__, DBAPIError)):
            time.sleep(1)
            return _open_study(url, name, tries - 1)
        line = str(error).splitlines()[0].replace(url, mask_password(url))
        raise ValueError(f"sweep.storage={mask_password(url)}: cannot open this database: {line}") from error


def _study_key(fixed: Sequence[str], space: SearchSpace) -> dict[str, Any]:
    """Return what trials of all machines must have in common."""
    common = [line for line in fixed if not line.lstrip("+~").startswith(_MACHINE_KEYS)]
    return {"fixed": sorted(common), "space": {key: distribution_to_json(one) for key, one in space.items()}}
