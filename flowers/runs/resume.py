"""How a run is resumed: what it was started with, and what resumes have added since."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flowers.runs.run_folder import LAST_CHECKPOINT, MULTIRUN_FILE, RESUMES_FILE, START_FILE, read_result
from flowers.runtime.files import atomic_write_text, read_yaml
from flowers.runtime.launch import (
    exit_with_parent,
    exit_with_parent_if_requested,
    is_launched_by_lightning,
    share_run_dir,
)
from flowers.runtime.text import shell_setting
from flowers.settings.overrides import last_value, quote_override
from flowers.settings.validation import check_file


def expand_resume_args(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a training process composes its configuration from.

    `resume=FOLDER` expands to the overrides that the run in FOLDER was started with, those of earlier resumes since
    which the run has progressed, and `overrides`. The working directory becomes that of the run, if it still exists, so
    that relative paths keep their meaning. If FOLDER is that of a multirun, its jobs start again; see `resume_job`.

    Raises:
        ValueError: FOLDER holds no run, or several processes would each make a run folder of their own.
    """
    exit_with_parent_if_requested()
    if is_launched_by_lightning():  # the first process has expanded them already
        exit_with_parent()
        return list(overrides)
    given = last_value([line for line in overrides if line.startswith("resume=")], "resume")
    if not given:
        return share_run_dir(overrides)
    folder = Path(given).resolve()
    if (folder / MULTIRUN_FILE).is_file():
        return _expand_multirun(folder, overrides)
    if not (folder / START_FILE).is_file():
        raise ValueError(f"resume={given}: no run there (no {START_FILE}): give a run folder")
    cwd, started = read_start(folder)
    with suppress(OSError):
        os.chdir(cwd)
    expanded = [line for line in [*started, *overrides] if not line.startswith("resume=")]
    quoted = quote_override(folder)
    # Without hydra.output_subdir=null, Hydra would replace the overrides of the start in .hydra.
    return share_run_dir([*expanded, f"resume={quoted}", f"hydra.run.dir={quoted}", "hydra.output_subdir=null"])


def _expand_multirun(folder: Path, overrides: Sequence[str]) -> list[str]:
    path = folder / MULTIRUN_FILE
    content = _read_yaml(path, "start a new multirun")
    try:
        given, cwd = content["hydra"]["overrides"], str(content["hydra"]["runtime"]["cwd"])
        if not all(isinstance(given[name], list) for name in ("task", "hydra")):
            raise TypeError("expected lists")
        task, hydra = [str(line) for line in given["task"]], [str(line) for line in given["hydra"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: expected the settings of a multirun: start a new one") from error
    own = [line for line in overrides if not line.startswith("resume=")]
    if changed := [line for line in own if not line.startswith("hydra")]:
        raise ValueError(
            f"{changed[0]}: a multirun resumes with its own settings: leave it out, or resume one run, such as "
            f"{shell_setting('resume', folder / '0')}"
        )
    with suppress(OSError):
        os.chdir(cwd)
    quoted = quote_override(folder)
    known = ("hydra.mode=", "hydra.sweep.dir=", "resume=")
    lines = [line for line in (*task, *hydra, *own) if not line.startswith(known)]
    return [*lines, f"resume={quoted}", f"hydra.sweep.dir={quoted}", "hydra.mode=MULTIRUN"]


def resume_job(resume: str, multirun: Path, folder: Path, overrides: Sequence[str]) -> tuple[float | None, Path | None]:
    """Return what a job of a resumed multirun has left to do.

    Args:
        resume: The folder that is to be resumed.
        multirun: The folder of the multirun.
        folder: The run folder of the job.
        overrides: The overrides of the job.

    Returns:
        The accuracy of a finished run, else None; the folder of an interrupted run, None for one that has not begun.

    Raises:
        ValueError: The resumed folder is not that of the multirun, or the run folder is damaged or holds another run.
    """
    if Path(resume).resolve() != multirun.resolve():
        raise ValueError(f"resume={resume} with -m: expected the folder of a multirun, or no -m")
    if not (folder / START_FILE).exists():
        return None, None
    own = [line for line in overrides if not line.startswith("resume=")]
    if read_start(folder)[1][: len(own)] != own:
        raise ValueError(f"{folder} holds another run, with other settings: move it away")
    result = read_result(folder)
    return (float(result["val"]["accuracy"]) if result else None), folder


def read_start(folder: Path) -> tuple[str, list[str]]:
    """Return the working directory of a run, and the overrides to resume it with.

    Raises:
        ValueError: A file of the run is damaged, or the run was started from Python, where no overrides are known.
    """
    start = _read_start(folder / START_FILE)
    if start["overrides"] is None:
        raise ValueError(
            f"{folder} was started from Python: resume it there, with {shell_setting('run_dir', folder)} and "
            f"{shell_setting('resume', folder)} beside its own overrides"
        )
    resumes = _read_resumes(folder / RESUMES_FILE, "delete it to resume with the settings of the start")
    # A resume with a setting that made it fail must not be repeated: it counts once a checkpoint has been written.
    counted = [each for each in resumes if each["checkpoint"] != _checkpoint_state(folder)]
    return start["cwd"], [line for each in [start, *counted] for line in each["overrides"]]


def write_start(folder: Path, overrides: Sequence[str] | None, is_resumed: bool) -> None:
    """Write what a run is started with, once; keep the overrides that a resume adds in another file.

    Args:
        folder: The run folder.
        overrides: The overrides of this process, without those of Hydra; None where Hydra did not start it.
        is_resumed: Whether the process resumes the run.
    """
    own = None if overrides is None else [line for line in overrides if not line.startswith("resume=")]
    if not (folder / START_FILE).exists():
        atomic_write_text(folder / START_FILE, OmegaConf.to_yaml({"cwd": str(Path.cwd()), "overrides": own}))
        return
    if not is_resumed or own is None:
        return
    known = {line.lstrip("+") for line in read_start(folder)[1]}
    if own := [line for line in own if line.lstrip("+") not in known]:
        path = folder / RESUMES_FILE
        earlier = _read_resumes(path, "delete it")
        entry = {"cwd": str(Path.cwd()), "overrides": own, "checkpoint": _checkpoint_state(folder)}
        atomic_write_text(path, OmegaConf.to_yaml([*earlier, entry]))


def _checkpoint_state(folder: Path) -> int:
    """Return a number that changes whenever the last checkpoint is written; 0 before the first."""
    path = folder / LAST_CHECKPOINT
    return path.stat().st_mtime_ns if path.exists() else 0


def _read_start(path: Path) -> dict[str, Any]:
    from flowers.settings.schema.run_files import Start  # takes 40 ms, also where a typo is answered

    advice = "start a new run with the settings in config.yaml"
    content = _read_yaml(path, advice)
    check_file(path, content, Start, advice)
    return dict(content)


def _read_resumes(path: Path, advice: str) -> list[dict[str, Any]]:
    """Return the entries of resumed.yaml; none if there is no such file."""
    if not path.is_file():
        return []
    from flowers.settings.schema.run_files import Resume  # see _read_start

    entries = _read_yaml(path, advice)
    for entry in entries if isinstance(entries, list) else [entries]:
        check_file(path, entry, Resume, advice)
    return [{"checkpoint": 0, **entry} for entry in (entries if isinstance(entries, list) else [entries])]


def _read_yaml(path: Path, advice: str) -> Any:
    try:
        return read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}: {advice}") from error
