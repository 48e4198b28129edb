"""A run folder: how it begins, how an interrupted one goes on, and where its numbers came from."""

import importlib.metadata
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from flowers import atomic, processes, remote, split
from flowers.overrides import quoted

log = logging.getLogger(__name__)

CONFIG, SPLIT = "config.yaml", "split.csv"
STARTED = "started.yaml"  # the overrides that a run was started with, and from which folder


def arguments(given: Sequence[str]) -> list[str]:
    """With `resume=FOLDER` among them: the overrides that the run in FOLDER was started with, then the ones given.

    Raises ValueError where FOLDER holds no run, and where several processes would each have a folder of their own.
    """
    if processes.is_started_by_another():  # with what that one has made of its arguments here
        processes.end_with_parent()
        return list(given)
    folders = [argument.removeprefix("resume=") for argument in given if argument.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return processes.in_one_folder(given)
    folder = Path(folders[-1] if Path(folders[-1]).exists() else folders[-1].strip("'\"")).resolve()
    if not (folder / STARTED).is_file():
        raise ValueError(f"resume={folders[-1]}: no run there (no {STARTED}): give the folder of a run")
    started = plain(OmegaConf.load(folder / STARTED))
    with suppress(OSError):  # relative paths in them mean what they meant, where that folder is still there
        os.chdir(started["cwd"])
    overrides = [line for line in [*started["overrides"], *given] if not line.startswith("resume=")]
    return processes.in_one_folder([*overrides, f"resume={quoted(folder)}", f"hydra.run.dir={quoted(folder)}"])


def begin(cfg: DictConfig) -> Path:
    """The run's folder; `cfg` gets the absolute paths of it and of the photos.

    Raises ValueError where it holds another run already, in a multirun for a run of several processes, and where
    trainer.strategy is not offered, or not for a compiled backbone.
    """
    folder = Path(cfg.run_dir).resolve()
    cfg.run_dir = str(folder)
    cfg.data.root = cfg.data.root if remote.is_remote(cfg.data.root) else str(Path(cfg.data.root).resolve())
    is_multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    devices = cfg.trainer.devices
    if is_multirun and devices not in (1, "1") and not (isinstance(devices, ListConfig) and len(devices) == 1):
        raise ValueError(
            f"a multirun with trainer.devices={devices} would run the whole sweep once a process: "
            "give trainer.devices=1, or start each run by itself"
        )
    if cfg.trainer.strategy == "fsdp":
        raise ValueError("trainer.strategy=fsdp is FSDP of the first kind, which is not offered: wanted trainer=fsdp")
    if cfg.finetune.compile and cfg.trainer.strategy == "fsdp2":
        raise ValueError("finetune.compile=true does not go with trainer=fsdp: wanted one of them, or trainer=ddp")
    if processes.is_first() and (folder / CONFIG).exists() and not cfg.resume:
        raise ValueError(
            f"{folder} holds a run already: resume={folder} goes on with it, hydra.run.dir=… starts another"
        )
    return folder


def accept(cfg: DictConfig, folder: Path, rows: Sequence[split.Row]) -> None:
    """Writes what the run is: its split, its configuration, and the overrides that resuming starts from.

    Raises ValueError, and writes nothing, where the run that is gone on with had another split.
    """
    kept = folder / SPLIT
    if kept.exists() and split.load(kept) != list(rows):
        raise ValueError(f"the photos or the split differ from those of {kept}: bring them back, or start a new run")
    if processes.is_first():
        split.save(rows, kept)
        atomic.write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        atomic.write_text(folder / STARTED, OmegaConf.to_yaml({"cwd": str(Path.cwd()), "overrides": overrides}))


def plain(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    """`cfg` as plain Python: what a checkpoint may hold and still be read without running code."""
    return {str(name): value for name, value in OmegaConf.to_container(cfg, resolve=True).items()}  # type: ignore[union-attr]


def existing(folder: str | None) -> Path:
    """The folder of a run. Raises ValueError where none is given or none is there."""
    if not folder:
        raise ValueError("which run? Give run=FOLDER or checkpoint=FILE")
    if not (Path(folder) / CONFIG).is_file():
        raise ValueError(f"run={folder}: no run there (no {CONFIG}): give the folder of a run, such as outputs/…/…")
    return Path(folder)


def split_of(checkpoint: Path, digest: str) -> Path:
    """The split.csv in the run folder of `checkpoint`. Raises ValueError where it is missing or is not that one."""
    kept = checkpoint.resolve().parent.parent / SPLIT
    if not kept.is_file():
        raise ValueError(f"{checkpoint} lies in no run folder (no {kept}): give the photos to score with photos=FOLDER")
    if split.digest(split.load(kept)) != digest:
        raise ValueError(f"{kept} is not the split that {checkpoint} was trained on: give photos=FOLDER")
    return kept


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
        if not processes.is_anothers_end(error):
            raise
        raise ValueError(f"another process of this run ended before its end; go on with: {command}") from error


def provenance() -> dict[str, Any]:
    """Versions of what computes, and the commit of this project's checkout (None outside of one)."""
    names = ("torch", "torchvision", "lightning", "torchmetrics", "pillow", "numpy")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    return {"versions": versions, "git": _commit()}


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        )

    try:
        if git("rev-parse", "--show-prefix").strip() != "flowers/":  # installed below somebody else's checkout
            return None
        return git("rev-parse", "HEAD").strip() + (
            "-dirty" if git("status", "--porcelain", "--", ".", "../conf") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
