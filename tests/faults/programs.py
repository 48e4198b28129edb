"""Run programs of this project in forked processes: a killed one costs no import of torch."""

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a program ended: its exit status, negative for a signal, what it printed, and the seconds it took."""

    status: int
    output: str
    seconds: float


def preload() -> None:
    """Import what the programs import, before they are forked."""
    for name in (
        "training.experiment",
        "evaluation.evaluator",
        "deploy.predict",
        "search.runner",
        "data.packing",
        "deploy.export.pipeline",
    ):
        importlib.import_module(f"flowers.{name}")


def run(
    name: str,
    arguments: Sequence[str],
    log: Path,
    kill_after: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run `flowers.NAME` with arguments, and kill it after `kill_after` seconds if it still runs."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        _become(name, arguments, log, environment or {})
    status = None
    while status is None:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
        elif kill_after is not None and time.monotonic() - start >= kill_after:
            os.kill(child, signal.SIGKILL)
            kill_after = None
        else:
            time.sleep(0.002)
    return Ended(status, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - start)


def _become(name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", errors="replace") for number in (1, 2))
    sys.argv = [f"flowers.{name}", *arguments]
    status = 70
    try:
        importlib.import_module(f"flowers.{name}").main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
