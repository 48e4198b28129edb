"""The files of a run folder, how a run is found and resumed, and what produced its numbers."""

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

CONFIG_FILE = "config.yaml"  # the resolved configuration
SPLIT_FILE = "split.csv"  # each image, its class and its split
START_FILE = "started.yaml"  # the overrides and the working directory that the run was started with
BEST_CHECKPOINT = "checkpoints/best.ckpt"  # the weights of the epoch with the best validation accuracy
LAST_CHECKPOINT = "checkpoints/last.ckpt"  # all that a resumed run needs
PREDICTIONS_DIR = "predictions"  # one file a split, such as val.csv: the logits of each image
RESULT_FILE = "result.json"  # scores, versions and cost; written last, so only finished runs have it
HYDRA_OVERRIDES_FILE = ".hydra/overrides.yaml"  # the overrides of this run, written by Hydra


def expand_resume_args(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a training process composes its configuration from.

    `resume=FOLDER` expands to the overrides that the run in FOLDER was started with, followed by `overrides`. The
    working directory becomes that of the run, if it still exists, so that relative paths keep their meaning.

    Raises:
        ValueError: FOLDER holds no run, or several processes would each make a run folder of their own.
    """
    exit_with_parent_if_requested()
    if is_launched_by_lightning():  # the first process has expanded them already
        exit_with_parent()
        return list(overrides)
    folders = [line.removeprefix("resume=") for line in overrides if line.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return share_run_dir(overrides)
    folder = Path(folders[-1] if Path(folders[-1]).exists() else folders[-1].strip("'\"")).resolve()
    if not (folder / START_FILE).is_file():
        raise ValueError(f"resume={folders[-1]}: no run there (no {START_FILE}): give a run folder")
    start = to_container(OmegaConf.load(folder / START_FILE))
    with suppress(OSError):
        os.chdir(start["cwd"])
    expanded = [line for line in [*start["overrides"], *overrides] if not line.startswith("resume=")]
    return share_run_dir([*expanded, f"resume={quote_override(folder)}", f"hydra.run.dir={quote_override(folder)}"])


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
    """Yield each run folder of a Hydra multirun and its overrides, sorted by name; failed runs are included."""
    for path in sorted(folder.glob(f"*/{HYDRA_OVERRIDES_FILE}")):
        yield path.parents[1], [str(line) for line in OmegaConf.load(path)]


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Log the command that resumes the work if the block is interrupted.

    Raises:
        SystemExit: The block was interrupted; Lightning turns Ctrl-C into a SystemExit.
        ValueError: Another process of the run has ended.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.warning("interrupted; resume with: %s", command)
        raise SystemExit(130) from None
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        raise ValueError(f"another process of this run ended early; resume with: {command}") from error


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
