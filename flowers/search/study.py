"""A hyperparameter search: an Optuna study, and the folder where this machine runs its trials."""

import fcntl
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import optuna
from omegaconf import OmegaConf
from optuna.distributions import distribution_to_json
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError

from flowers.runtime.config import check_overrides
from flowers.runtime.files import atomic_write_text
from flowers.search.space import SearchSpace, first_point, parse_search_space, sample

log = logging.getLogger(__name__)


SEARCH_FILE, STUDY_FILE = "search.yaml", "study.db"


optuna.logging.set_verbosity(optuna.logging.WARNING)  # it says on the terminal what the search says itself


# What may differ between machines that share a study.
_MACHINE_KEYS = (
    "data.root",
    "data.num_workers",
    "data.decoded_cache_fraction",
    "model.weights",
    "features.",
    "trainer",
)


class SearchManifest(NamedTuple):
    """What is written down of a search where it is first started, in its folder."""

    owner: str  # this folder, to the study
    cwd: str
    settings: list[str]
    shared: bool  # whether the study is at a URL that was given


def open_manifest(folder: Path, settings: Sequence[str], shared: bool) -> SearchManifest:
    """Writes down a new search, or reads one that was started before; then relative paths mean what they meant.

    Raises ValueError, and writes nothing, for settings of which no trial can be made, or that differ from those that it
    was started with.
    """
    kept = folder / SEARCH_FILE
    if not kept.is_file():
        _check_settings(settings)
        begun = SearchManifest(uuid.uuid4().hex, str(Path.cwd()), list(settings), shared)
        atomic_write_text(kept, OmegaConf.to_yaml(begun._asdict()))
        return begun
    begun = SearchManifest(**cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(kept))))
    if settings and list(settings) != begun.settings:
        raise ValueError(
            f"{folder} holds a search over {' '.join(begun.settings)}: give those settings, or none to go on with it, "
            "or another sweep.folder"
        )
    if shared != begun.shared:
        raise ValueError(f"{folder} was started {'with' if begun.shared else 'without'} sweep.storage: give the same")
    with suppress(OSError):
        os.chdir(begun.cwd)
    return begun


def _check_settings(settings: Sequence[str]) -> None:
    fixed, searched = parse_search_space(settings)
    if not searched:
        raise ValueError("nothing to search for: give some key several values, such as scheduler=constant,cosine")
    check_overrides([*fixed, *first_point(searched)], "train")  # the type of what will be drawn


@contextmanager
def lock_directory(folder: Path) -> Iterator[int]:
    """Keeps other processes out of a folder; gives what a child process is to inherit so that it does so too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is at work in %s: waiting for its end", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


class Search:
    """The study of a search, of which this folder runs some or all trials.

    Args:
        folder: of this machine's trials; held (`held`).
        begun: see `begin`.
        url: of the study's database; None for a file in the folder.
        name: the study's in it; made where there is none yet.
        sampler: makes one from a seed. Each trial has its own, so that a search that was cut draws what it would have.
        pruner: see Optuna.
        seed: of what is drawn.

    Raises ValueError for a database that cannot be used, or a study of other settings.
    """

    def __init__(
        self,
        folder: Path,
        begun: SearchManifest,
        url: str | None,
        name: str,
        sampler: Callable[..., BaseSampler],
        pruner: BasePruner,
        seed: int,
    ) -> None:
        self.folder, self.owner = folder, begun.owner
        self.url, self.name = url or f"sqlite:///{folder / STUDY_FILE}", name
        self.fixed, self.space = parse_search_space(begun.settings)
        self.sampler, self.pruner, self.seed = sampler, pruner, seed
        self.storage, study = _open_study(self.url, name)
        mine = _study_key(self.fixed, self.space)
        if study.user_attrs.setdefault("search", mine) != mine:
            raise ValueError(
                f"the study {name} in {_mask_password(self.url)} is of another search: "
                "wanted its settings, or sweep.study=…"
            )
        study.set_user_attr("search", mine)
        self.study_id = self.storage.get_study_id_from_name(name)
        # Cut ones: begun here, by a process that is no more.
        self._cut = [each for each in self.trials() if each.state == TrialState.RUNNING and self.is_own(each)]

    def trials(self) -> list[FrozenTrial]:
        """All trials so far, of all machines, by number."""
        trials = self.storage.get_all_trials(self.study_id, deepcopy=False)
        return [trial for trial in trials if "surplus" not in trial.user_attrs]

    def folder_of(self, number: int) -> Path:
        """A trial's own."""
        return self.folder / "trials" / str(number)

    def is_own(self, trial: FrozenTrial) -> bool:
        """Whether it was begun in this folder."""
        return bool(trial.user_attrs["owner"] == self.owner)

    def next(self, count: int) -> Trial | None:
        """A cut trial of this folder to go on with, else a new one; None where there are `count` in all."""
        if self._cut:
            cut = self._cut.pop(0)
            return Trial(self._study(cut.number), cut._trial_id)
        if len(self.trials()) >= count:
            return None
        # One transaction: no moment at which a trial is there and not its owner, and no two with one number.
        begun = create_trial(state=TrialState.RUNNING, user_attrs={"owner": self.owner})
        trial_id = self.storage.create_new_trial(self.study_id, begun)
        number = self.storage.get_trial(trial_id).number
        if sum(trial.number < number for trial in self.trials()) >= count:  # another machine was faster
            self.storage.set_trial_user_attr(trial_id, "surplus", True)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        return Trial(self._study(number), trial_id)

    def draw(self, trial: Trial) -> list[str]:
        """What the trial draws, as overrides beside the fixed ones."""
        return sample(trial, self.space)

    def pruning_context(self, trial: Trial) -> dict[str, Any]:
        """What `Pruning` needs to know of it."""
        return {"study": self.name, "storage": self.url, "trial": trial._trial_id}

    def is_stopped(self, trial: Trial) -> bool:
        """Whether `Pruning` has stopped it."""
        return "pruned" in self.storage.get_trial(trial._trial_id).user_attrs

    def _study(self, number: int) -> optuna.Study:
        seed = self.seed * 1_000_003 + number
        return optuna.load_study(
            study_name=self.name, storage=self.storage, sampler=self.sampler(seed=seed), pruner=self.pruner
        )


def _open_study(url: str, name: str, tries: int = 5) -> tuple[BaseStorage, optuna.Study]:
    """The database and the study, made where they are not. Two machines may be about to make them: one is refused."""
    try:
        storage = get_storage(url)
        return storage, optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    except Exception as error:  # of the database's own driver, or Optuna's around it
        if tries > 1 and (isinstance(error, DBAPIError) or isinstance(error.__cause__, DBAPIError)):
            time.sleep(1)
            return _open_study(url, name, tries - 1)
        line = str(error).splitlines()[0].replace(url, _mask_password(url))
        raise ValueError(f"sweep.storage={_mask_password(url)}: no study can be kept there: {line}") from error


def _mask_password(url: str) -> str:
    """A database's address without its password, for logs that others read."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


def _study_key(fixed: Sequence[str], searched: SearchSpace) -> dict[str, Any]:
    common = [line for line in fixed if not line.lstrip("+~").startswith(_MACHINE_KEYS)]
    return {"fixed": sorted(common), "space": {key: distribution_to_json(one) for key, one in searched.items()}}
