import subprocess
import sys

import pytest

from flowers.runtime.launch import is_launched_by_lightning, is_peer_failure, is_rank_zero, share_run_dir

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS")

CHILD = "import sys, time; from flowers.runtime import launch; launch.{call}; print(flush=True); time.sleep(60)"
PARENT = """
import os, subprocess, sys
from flowers.runtime.launch import parent_environment
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, env=os.environ | parent_environment()
)
child.stdout.readline()
os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("call", ["exit_with_parent()", "exit_with_parent_if_requested()"])
def test_exit_with_parent_ends_the_child_of_a_killed_process(call: str):
    command = [sys.executable, "-c", PARENT, CHILD.format(call=call)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as parent:
        _, errors = parent.communicate(timeout=30)  # standard error closes when the child ends
    assert errors == "error: exiting because the parent process ended\n"


def test_exit_with_parent_notices_a_parent_that_ended_before():
    command = [sys.executable, "-c", CHILD.format(call="exit_with_parent(1 << 30)")]
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 1


def test_exit_with_parent_if_requested_does_not_pass_the_request_on():
    code = """
import os, threading
from flowers.runtime.launch import exit_with_parent_if_requested, parent_environment
exit_with_parent_if_requested()
assert threading.active_count() == 1
names = parent_environment().keys()
os.environ.update(dict.fromkeys(names, str(os.getppid())))
exit_with_parent_if_requested()
assert threading.active_count() == 2
assert not names & os.environ.keys()
"""
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "1"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "7"}, True),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_is_rank_zero_reads_torchrun_then_lightning_then_slurm(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() == expected


def test_is_launched_by_lightning_needs_a_local_rank_without_torchrun(monkeypatch: pytest.MonkeyPatch):
    assert not is_launched_by_lightning()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert is_launched_by_lightning()
    monkeypatch.setenv("RANK", "1")
    assert not is_launched_by_lightning()


def test_share_run_dir_lets_rank_zero_alone_write(monkeypatch: pytest.MonkeyPatch):
    overrides = ["seed=1", "hydra.run.dir=runs/a"]
    assert share_run_dir(["seed=1"]) == ["seed=1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert share_run_dir(overrides) == overrides
    monkeypatch.setenv("RANK", "1")
    assert share_run_dir(overrides) == [*overrides, "hydra.output_subdir=null", "hydra.job.name=process_1"]
    with pytest.raises(ValueError, match=r"2 processes need one run folder: add hydra\.run\.dir=FOLDER"):
        share_run_dir(["seed=1"])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("Connection refused", False),
        ("gloo: unsupported data type", False),
    ],
)
def test_is_peer_failure_needs_a_collective_and_a_lost_connection(message: str, expected: bool):
    assert is_peer_failure(RuntimeError(message)) == expected
