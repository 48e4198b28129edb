"""What Ctrl-C and SIGTERM do to a run: stop at the next step where nothing is lost, or at once."""

import atexit
import logging
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from flowers.runtime.files import DiskFullError
from flowers.runtime.launch import is_peer_failure, is_rank_zero

log = logging.getLogger(__name__)

_EXIT_SECONDS = 1.0  # for all workers, to end by SIGTERM


class StopRequest:
    """Whether a signal has asked the run to stop.

    Training sets `waits` while it can save and stop within one step or one validation. The first signal then only sets
    `is_set`. Otherwise, and at the second signal, KeyboardInterrupt is raised. A third signal ends the process.
    """

    def __init__(self) -> None:
        self.reset("")

    def reset(self, command: str) -> None:
        """Forget earlier signals. `command` is what resumes the run."""
        self.waits = self.is_set = False
        self.signals, self.command = 0, command

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        self.signals += 1
        if self.signals == 1 and self.waits:
            self.is_set = True
            log.warning("stopping after this step; a second signal stops at once")
        elif self.signals <= 2:
            raise KeyboardInterrupt
        elif is_rank_zero():
            sys.stderr.write(f"interrupted; resume with: {self.command}\n")
            os._exit(130)
        else:
            os._exit(130)


STOP = StopRequest()  # signals belong to the process, and so does this


def install_stop_signals() -> None:
    """Handle SIGINT and SIGTERM by `STOP`. Lightning installs a handler of its own whenever it starts to train."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, STOP.handle)


def ignore_stop_signals(*_: Any) -> None:
    """Ignore SIGINT and the first SIGTERM in a worker process: a terminal or a scheduler sends them to all processes.

    The main process stops the worker when it is done. A second SIGTERM ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _end_workers() -> None:
    """End the workers that are left at exit: multiprocessing sends SIGTERM once, and then waits for them for ever.

    A DataLoader has left them if it was collected in a reference cycle, as after an exception: its queues go first.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _EXIT_SECONDS
    for worker in workers:
        worker.join(max(0, deadline - time.monotonic()))
        worker.kill()


atexit.register(_end_workers)  # runs before the function that multiprocessing has registered


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Run work that `command` resumes: whatever ends it early, the last line names the command.

    Raises:
        SystemExit: The block was interrupted; Lightning turns Ctrl-C into a SystemExit.
        ValueError: Another process of the run has ended, or the disk is full.
    """
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    outer = STOP.command  # of a search, while it trains in its own process
    STOP.reset(command)
    install_stop_signals()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.warning("interrupted; resume with: %s", command)
        raise SystemExit(130) from None
    except DiskFullError as error:
        raise ValueError(f"{error}, then resume with: {command}") from error
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        raise ValueError(f"another process of this run ended early; resume with: {command}") from error
    finally:
        STOP.reset(outer)
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                signal.signal(number, handler or signal.SIG_DFL)
