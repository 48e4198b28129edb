"""Every program with every file of a stranger, as it is and with payloads in it.

The doors come from the table of programs, the files from folders that the programs made. In each cell: no code of the
stranger ran, no name was looked up and no socket opened, nothing was written outside, no variable of the environment
was printed, at most 2 GiB and 20 s were taken, and the program ended well or with one line that names the file.
"""

import contextlib
import os
import runpy
import socket
import sys
import types
from pathlib import Path

import pytest

from tests.faults.confinement import Confinement, preload, run_confined, start_server
from tests.faults.doors import (
    EXHIBITS,
    NOT_OF_A_STRANGER,
    TAKES,
    Door,
    cell_names,
    collect_exhibits,
    doors,
    installed_programs,
    make_exhibits,
    text_settings,
)
from tests.faults.matrix import Matrix

CELLS = cell_names()
FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "run_format_1"


def sampled() -> list[str]:
    """Return names of cells in which each program occurs, and each kind of file in two programs that are quick."""
    first = {door.program: f"{door}-{EXHIBITS[door.exhibit][0]}" for door in reversed(doors()) if not door.is_refused}
    quick = ("compare-runs-run", "compare-multirun-multirun-yaml", "predict-run-hub", "predict-photos-photos")
    return [*dict.fromkeys([*first.values(), *(name for name in CELLS if name.startswith(quick))])]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """The matrix on everything that the programs make."""
    folder = tmp_path_factory.mktemp("matrix")
    start_server()
    make_exhibits(folder / "exhibits")
    return Matrix(folder / "exhibits", folder / "cells")


@pytest.fixture(scope="module")
def small_matrix(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Matrix:
    """The matrix on a run of an earlier version."""
    folder = tmp_path_factory.mktemp("matrix")
    collect_exhibits(folder / "exhibits", FORMAT_1, shards)
    preload()
    return Matrix(folder / "exhibits", folder / "cells", "fork")


def test_each_setting_that_may_name_a_file_is_a_door_or_says_why_not():
    found = {setting for schema in installed_programs().values() for setting in text_settings(schema)}
    differing = found ^ (TAKES.keys() | NOT_OF_A_STRANGER.keys())
    assert not differing, f"put {sorted(differing)} into TAKES or NOT_OF_A_STRANGER of tests/faults/doors.py, or out"


def test_run_confined_tells_what_a_program_must_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "module.py").write_text("x = 1\n")

    def main() -> None:
        os.system("true")
        (tmp_path / "outside").touch()
        socket.getaddrinfo("localhost", 1)
        runpy.run_path(str(tmp_path / "stranger" / "module.py"))
        with contextlib.suppress(OSError), socket.socket() as client:
            client.connect(("127.0.0.1", 9))

    rogue = types.ModuleType("flowers.rogue")
    rogue.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flowers.rogue", rogue)
    ended = run_confined(Confinement("rogue", [], tmp_path / "cell", tmp_path / "stranger"), "fork")
    assert ended.status == 0
    assert ended.opened == {"module.py"}
    beginnings = ("ran b'true'", "wrote or deleted", "looked up 'localhost'", "executed the code of", "connected to")
    assert len(ended.findings) == len(beginnings)
    assert all(found.startswith(each) for found, each in zip(ended.findings, beginnings, strict=True)), ended.findings


@pytest.mark.parametrize("name", sampled())
def test_file_that_is_no_file_of_ours_does_no_harm(name: str, small_matrix: Matrix):
    cell = small_matrix.wide_cell(*CELLS[name])
    assert small_matrix.problems(cell) == [], str(cell)


@pytest.mark.faults
def test_exhibits_hold_the_groups_of_files_that_the_matrix_names(matrix: Matrix):
    assert {name: set(groups) for name, groups in EXHIBITS.items()} == {name: matrix.groups(name) for name in EXHIBITS}


@pytest.mark.faults
def test_matrix_has_300_cells(matrix: Matrix):
    counts = {name: sum(1 for _ in matrix.cells(*each)) for name, each in CELLS.items()}
    assert all(counts.values())
    assert sum(counts.values()) >= 300


@pytest.mark.faults
@pytest.mark.parametrize("door", doors(), ids=str)
def test_program_takes_a_strangers_files_as_they_are(door: Door, matrix: Matrix):
    ended = matrix.reference(door)
    assert ended.findings == []
    if door.is_refused:
        assert (ended.status, ended.output.count("error: ")) == (1, 1), ended.output
    else:
        advice = f"tell NEEDS in tests/faults/doors.py what {door.program} needs beside {door.setting}"
        assert ended.status == 0, f"{advice}: {ended.output}"


@pytest.mark.faults
@pytest.mark.parametrize("name", [*CELLS])
def test_file_of_a_stranger_does_no_harm(name: str, matrix: Matrix):
    found = {str(cell): problems for cell in matrix.cells(*CELLS[name]) if (problems := matrix.problems(cell))}
    assert not found, "\n".join(f"{cell} -> {'; '.join(problems)}" for cell, problems in found.items())
