"""The files of a run folder, how a run is found, and what produced its numbers."""

import fcntl
import importlib.metadata
import logging
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers.runtime.files import read_json, read_yaml, remove_stale_parts
from flowers.runtime.text import shell_setting
from flowers.settings.validation import check_file

if TYPE_CHECKING:
    from flowers.settings.schema.run_files import Result

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"  # the resolved configuration
CORRECTIONS_FILE = "corrections.csv"  # the corrections of labels that the run was trained with
SPLIT_FILE = "split.csv"  # each image, its class and its split
START_FILE = "started.yaml"  # the overrides and the working directory that the run was started with; never changed
RESUMES_FILE = "resumed.yaml"  # the overrides that resumes have added
LOCK_FILE = ".lock"  # held by the process that trains in the folder
BEST_CHECKPOINT = "checkpoints/best.ckpt"  # the weights of the epoch with the best validation accuracy
LAST_CHECKPOINT = "checkpoints/last.ckpt"  # all that a resumed run needs
PROFILE_DIR = "profile"  # where the time went, by stage; only with trainer.profiler
PREDICTIONS_DIR = "predictions"  # one file a split, such as val.csv: the logits of each image
REJECTION_FILE = "rejection.safetensors"  # what rejects images of none of the classes; only with `reject`
TRACKERS_FILE = "trackers.json"  # the id of the run in MLflow and in Weights & Biases
RESULT_FILE = "result.json"  # scores, versions and cost; written last, so only finished runs have it
MULTIRUN_FILE = "multirun.yaml"  # in the folder of a multirun: its configuration, written by Hydra
HYDRA_OVERRIDES_FILE = ".hydra/overrides.yaml"  # the overrides of this run, written by Hydra


@contextmanager
def own_run_dir(folder: Path) -> Iterator[None]:
    """Create a run folder and hold it, so that no other process trains in it. The lock ends with the process.

    Raises:
        ValueError: Another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as file:
        try:
            # Not flock: the workers of a killed process would inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"{folder} is in use: another process trains there; wait for it, or stop it") from error
        except OSError as error:
            log.warning("%s: the file system has no locks (%s): start no second run there", folder, error.strerror)
        for part in ("", Path(LAST_CHECKPOINT).parent, PREDICTIONS_DIR):
            remove_stale_parts(folder / part)
        yield


def find_checkpoint(run: str | Path | None) -> Path:
    """Return the checkpoint that `run=` names: a run folder's best checkpoint, or the checkpoint file itself.

    If the run has not finished, log a line that says so.

    Raises:
        ValueError: Nothing is given, or there is neither a run folder with a checkpoint nor a file.
    """
    if run and Path(run).is_file():
        return Path(run)
    folder = require_run_dir(run)
    checkpoint, is_finished = folder / BEST_CHECKPOINT, (folder / RESULT_FILE).is_file()
    if not checkpoint.is_file():
        state = "it has lost" if is_finished else "no epoch has finished: it has no"
        raise ValueError(
            f"run={run}: {state} {BEST_CHECKPOINT}: resume the run "
            f"(python -m flowers.train {shell_setting('resume', run)})"
        )
    if not is_finished:
        log.warning(
            "%s has not finished: its best checkpoint so far is used (%s finishes it)",
            run,
            shell_setting("resume", run),
        )
    return checkpoint


def load_result(folder: Path) -> "Result | None":
    """Return the content of result.json; None if the run has not finished.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    from flowers.settings.schema.run_files import Result  # takes 40 ms, also where a typo is answered

    return check_file(path, read_json(path), Result, "delete it and resume the run to write it again")


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return `load_result` as plain Python."""
    result = load_result(folder)
    return None if result is None else result.to_dict()


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.yaml of a run as plain text, numbers and lists: nothing in it is resolved, imported or called.

    Raises:
        ValueError: The file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it is damaged")
    return content


def run_dir_of(checkpoint: Path) -> Path:
    """Return the run folder that holds `checkpoint`, by the folder's layout; it may lack the other files of a run."""
    return checkpoint.resolve().parent.parent


def require_run_dir(folder: str | Path | None) -> Path:
    """Return `folder` as a path after checking that it is a run folder.

    Raises:
        ValueError: Nothing is given, or the folder holds no run.
    """
    if not folder:
        raise ValueError("which run? Give run=FOLDER, or run=FILE for a checkpoint")
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise ValueError(f"run={folder}: no run there (no {CONFIG_FILE}): give a run folder, such as outputs/…/…")
    return Path(folder)


def iterate_multirun(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each run folder of a Hydra multirun and its overrides, sorted by name; failed runs are included.

    The overrides are as they were given: `${…}` in them is not resolved. That of a resume is left out.

    Raises:
        ValueError: A file of overrides is damaged.
    """
    for path in sorted(folder.glob(f"*/{HYDRA_OVERRIDES_FILE}")):
        content = read_yaml(path)
        lines = content if isinstance(content, list) else [None]
        # Hydra writes texts, but for one that is a number or the like to YAML.
        if any(isinstance(line, (list, dict)) or line is None for line in lines):
            raise ValueError(f"{path} is damaged: expected a list of overrides")
        yield path.parents[1], [str(line) for line in lines if not str(line).startswith("resume=")]


def provenance() -> dict[str, Any]:
    """Return the versions of Python and the packages that compute, and the git commit (None outside of a checkout)."""
    names = ("torch", "torchvision", "lightning", "torchmetrics", "pillow", "numpy")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    return {"versions": versions, "git": _git_commit()}


def _git_commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL, text=True
        )

    try:
        if git("rev-parse", "--show-prefix").strip() != "flowers/":  # installed inside another project's checkout
            return None
        changes = git("status", "--porcelain", "--", ".", "../conf")
        return git("rev-parse", "HEAD").strip() + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
