import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowers.runtime.files import DiskFullError
from flowers.runtime.interrupt import STOP, resumable


def test_resumable_logs_the_command_after_an_interruption(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as error, resumable("the command"):
        raise KeyboardInterrupt
    assert error.value.code == 130
    assert caplog.messages == ["interrupted; resume with: the command"]


def test_resumable_explains_a_lost_peer_and_nothing_else():
    with (
        pytest.raises(ValueError, match="another process of this run ended early; resume with: the command"),
        resumable("the command"),
    ):
        raise RuntimeError("gloo: Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), resumable("the command"):
        raise RuntimeError("shapes")


def test_resumable_says_how_to_continue_after_a_full_disk(tmp_path: Path):
    message = r"disk full: .* free some space, then resume with: the command"
    with pytest.raises(ValueError, match=message), resumable("the command"):
        raise DiskFullError(tmp_path / "last.ckpt", 10)


def send(*signals: int) -> None:
    for number in signals:
        os.kill(os.getpid(), number)


def test_a_signal_waits_for_the_step_and_the_second_stops_at_once():
    with resumable("the command"):
        STOP.waits = True
        send(signal.SIGTERM)
        assert STOP.is_set
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_a_signal_stops_at_once_where_nothing_is_saved():
    with pytest.raises(SystemExit) as error, resumable("the command"):
        send(signal.SIGTERM)
    assert error.value.code == 130


def test_resumable_restores_the_handlers_and_the_command_of_the_block_around_it():
    before = signal.getsignal(signal.SIGTERM)
    with resumable("outer"):
        with resumable("inner"):
            assert STOP.command == "inner"
        assert STOP.command == "outer"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_third_signal_ends_the_process_with_the_command():
    code = """
import os, signal
from flowers.runtime.interrupt import resumable
with resumable("the command"):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted; resume with: the command\n")


def test_worker_that_is_left_at_exit_is_ended():
    code = "import multiprocessing, time\nfrom flowers.runtime.interrupt import ignore_stop_signals\n"
    code += "ready = multiprocessing.Event()\n"
    code += "def work():\n    ignore_stop_signals()\n    ready.set()\n    while True: time.sleep(0.01)\n"
    code += "multiprocessing.get_context('fork').Process(target=work, daemon=True).start()\nready.wait()\nprint('end')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).stdout == b"end\n"


def test_ignore_stop_signals_keeps_a_worker_alive():
    code = "import os, signal\nfrom flowers.runtime.interrupt import ignore_stop_signals\n"
    code += "ignore_stop_signals(0)\n[os.kill(os.getpid(), n) for n in (signal.SIGINT, signal.SIGTERM)]\nprint('alive')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "alive\n"
