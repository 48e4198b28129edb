"""The processes of one run, as environment variables describe them."""

import os
import sys
import threading
import time
from collections.abc import Sequence


def is_rank_zero() -> bool:
    """Whether this is the one process, or of several that train together the first: the one that writes.

    By torchrun's word, else by that of Lightning's own launcher, else by SLURM's.
    """
    if "RANK" in os.environ:
        names = ["RANK"]
    elif {"LOCAL_RANK", "NODE_RANK"} & os.environ.keys():
        names = ["LOCAL_RANK", "NODE_RANK"]
    else:
        names = ["SLURM_PROCID"]
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def share_run_dir(overrides: Sequence[str]) -> list[str]:
    """`overrides` of one of several processes that torchrun or srun started: only the first leaves Hydra's files.

    Raises ValueError where each would choose a run folder of its own.
    """
    started = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    if int(started) > 1 and not any(line.startswith("hydra.run.dir=") for line in overrides):
        raise ValueError(f"{started} processes need one folder for their run: give hydra.run.dir=FOLDER")
    if is_rank_zero():
        return list(overrides)
    number = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID")
    return [*overrides, "hydra.output_subdir=null", f"hydra.job.name=process_{number}"]


def is_launched_by_lightning() -> bool:
    """Whether the first process of the run on this machine started this one, by Lightning's launcher."""
    return "LOCAL_RANK" in os.environ and "RANK" not in os.environ


def exit_with_parent() -> None:
    """Has this process end within seconds of the one that started it, which may be killed."""
    threading.Thread(target=_exit_when_orphaned, args=(os.getppid(),), daemon=True).start()


def _exit_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    try:
        sys.stderr.write("error: the process that started this one ended, and this one with it\n")
    finally:  # also where nobody listens any more
        os._exit(1)


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error of a collective operation says that another process has gone."""
    said = str(error).lower()
    is_collective = "gloo" in said or "nccl" in said or type(error).__name__.startswith("Dist")
    return is_collective and any(word in said for word in ("connection", "peer", "socket", "broken pipe", "remote"))
