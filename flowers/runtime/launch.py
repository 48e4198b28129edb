"""The processes of one run: which of them this one is, and how it notices that another one ended."""

import os
import sys
import threading
import time
from collections.abc import Sequence

_PARENT_PID = "FLOWERS_PARENT_PID"


def is_rank_zero() -> bool:
    """Return whether this process writes the files: the only process of a run, or the first of several.

    The ranks come from torchrun's environment variables, else from those of Lightning's launcher, else from SLURM's.
    """
    if "RANK" in os.environ:
        names = ["RANK"]
    elif {"LOCAL_RANK", "NODE_RANK"} & os.environ.keys():
        names = ["LOCAL_RANK", "NODE_RANK"]
    else:
        names = ["SLURM_PROCID"]
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def share_run_dir(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of this process, so that only rank 0 of those that torchrun or srun started writes `.hydra`.

    Raises:
        ValueError: There are several processes and no override names the run folder: each would make its own.
    """
    count = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    if int(count) > 1 and not any(line.startswith("hydra.run.dir=") for line in overrides):
        raise ValueError(f"{count} processes need one run folder: add hydra.run.dir=FOLDER")
    if is_rank_zero():
        return list(overrides)
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID")
    return [*overrides, "hydra.output_subdir=null", f"hydra.job.name=process_{rank}"]


def is_launched_by_lightning() -> bool:
    """Return whether Lightning's launcher started this process, from the first process on this machine."""
    return "LOCAL_RANK" in os.environ and "RANK" not in os.environ


def exit_with_parent(parent: int | None = None) -> None:
    """Exit within about a second after the parent process ends, even if it is killed.

    Args:
        parent: The process id of the parent. Give it where you can: then a parent that ended before this call is
            noticed too. By default the parent at the time of this call.
    """
    threading.Thread(target=_exit_when_orphaned, args=(parent or os.getppid(),), daemon=True).start()


def parent_environment() -> dict[str, str]:
    """Return environment variables that let a child of this process call `exit_with_parent_if_requested`."""
    return {_PARENT_PID: str(os.getpid())}


def exit_with_parent_if_requested() -> None:
    """Call `exit_with_parent` if the parent started this process with `parent_environment()`.

    The request is removed from the environment: the children of this process have another parent.
    """
    if parent := os.environ.pop(_PARENT_PID, None):
        exit_with_parent(int(parent))


def _exit_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    try:
        sys.stderr.write("error: exiting because the parent process ended\n")
    finally:  # standard error may be closed
        os._exit(1)


def is_peer_failure(error: BaseException) -> bool:
    """Return whether an error of a collective operation means that another process of the run has ended."""
    message = str(error).lower()
    is_collective = "gloo" in message or "nccl" in message or type(error).__name__.startswith("Dist")
    return is_collective and any(word in message for word in ("connection", "peer", "socket", "broken pipe", "remote"))
