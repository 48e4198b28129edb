"""The files of a run folder, how a run is resumed, and where its numbers came from."""

import importlib.metadata
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flowers.runtime.config import quote_override, to_container
from flowers.runtime.launch import (
    exit_with_parent,
    exit_with_parent_if_requested,
    is_launched_by_lightning,
    is_peer_failure,
    share_run_dir,
)

log = logging.getLogger(__name__)


CONFIG_FILE, SPLIT_FILE = "config.yaml", "split.csv"


START_FILE = "started.yaml"  # the overrides that a run was started with, and from which folder
BEST_CHECKPOINT, LAST_CHECKPOINT = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
PREDICTIONS_DIR = "predictions"  # of a run; a file a split
RESULT_FILE = "result.json"


def expand_resume_args(given: Sequence[str]) -> list[str]:
    """With `resume=FOLDER` among them: the overrides that the run in FOLDER was started with, then the ones given.

    Raises ValueError where FOLDER holds no run, and where several processes would each have a folder of their own.
    """
    exit_with_parent_if_requested()
    if is_launched_by_lightning():  # with what that one has made of its arguments here
        exit_with_parent()
        return list(given)
    folders = [argument.removeprefix("resume=") for argument in given if argument.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return share_run_dir(given)
    folder = Path(folders[-1] if Path(folders[-1]).exists() else folders[-1].strip("'\"")).resolve()
    if not (folder / START_FILE).is_file():
        raise ValueError(f"resume={folders[-1]}: no run there (no {START_FILE}): give the folder of a run")
    started = to_container(OmegaConf.load(folder / START_FILE))
    with suppress(OSError):  # relative paths in them mean what they meant, where that folder is still there
        os.chdir(started["cwd"])
    overrides = [line for line in [*started["overrides"], *given] if not line.startswith("resume=")]
    return share_run_dir([*overrides, f"resume={quote_override(folder)}", f"hydra.run.dir={quote_override(folder)}"])


def find_checkpoint(run: str | Path | None) -> Path:
    """Return the checkpoint that `run=` names: a run folder's best checkpoint, or the checkpoint file itself.

    Raises:
        ValueError: Nothing is given, or there is neither a run folder nor a file.
    """
    if run and Path(run).is_file():
        return Path(run)
    return require_run_dir(run) / BEST_CHECKPOINT


def run_dir_of(checkpoint: Path) -> Path:
    """Return the run folder that holds `checkpoint`, by the folder's layout; it may lack the other files of a run."""
    return checkpoint.resolve().parent.parent


def require_run_dir(folder: str | Path | None) -> Path:
    """The folder of a run. Raises ValueError where none is given or none is there."""
    if not folder:
        raise ValueError("which run? Give run=FOLDER or checkpoint=FILE")
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise ValueError(
            f"run={folder}: no run there (no {CONFIG_FILE}): give the folder of a run, such as outputs/…/…"
        )
    return Path(folder)


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Says which command goes on where the block is interrupted. Lightning makes a SystemExit of Ctrl-C.

    Raises ValueError where another process of the run has ended.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.warning("interrupted; go on with: %s", command)
        raise SystemExit(130) from None
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        raise ValueError(f"another process of this run ended before its end; go on with: {command}") from error


def provenance() -> dict[str, Any]:
    """Versions of what computes, and the commit of this project's checkout (None outside of one)."""
    names = ("torch", "torchvision", "lightning", "torchmetrics", "pillow", "numpy")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    return {"versions": versions, "git": _git_commit()}


def _git_commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL, text=True
        )

    try:
        if git("rev-parse", "--show-prefix").strip() != "flowers/":  # installed below somebody else's checkout
            return None
        return git("rev-parse", "HEAD").strip() + (
            "-dirty" if git("status", "--porcelain", "--", ".", "../conf") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
