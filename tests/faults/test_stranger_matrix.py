"""Every program with every file of a stranger, as it is and with payloads in it.

The doors come from the table of programs, the files from folders that the programs made. In each cell: no code of the
stranger ran, no name was looked up and no socket opened, nothing was written outside, no variable of the environment
was printed, at most 2 GiB and 20 s were taken, and the program ended well or with one line that names the file.
"""

from collections import Counter
from pathlib import Path

import pytest

from flowers.runtime.schema.programs import PROGRAM_SCHEMAS
from tests.faults.confinement import start_server
from tests.faults.doors import EXHIBITS, NOT_OF_A_STRANGER, TAKES, Door, doors, make_exhibits, text_settings
from tests.faults.matrix import COUNTS, Matrix

# The groups of files of each exhibit. `test_exhibits_hold_the_groups_of_files_that_the_matrix_names` compares them.
_RUN = ("checkpoint", "safetensors", "json", "yaml", "csv", "photo", "other")
HELD: dict[str, tuple[str, ...]] = {
    "run": _RUN,
    "multirun": _RUN,
    "search": _RUN,
    "hub": ("safetensors", "json", "other"),
    "shards": ("json", "csv", "npy", "tar"),
    "photos": ("photo", "json"),
    "pool": ("photo",),
    **dict.fromkeys(("corrections", "split", "labels"), ("csv",)),
    "weights": ("checkpoint",),
}
DOORS = doors()
CELLS = [pytest.param(door, group, id=f"{door}-{group}") for door in DOORS for group in HELD[door.exhibit]]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """The matrix on everything that the programs make."""
    folder = tmp_path_factory.mktemp("matrix")
    start_server()
    make_exhibits(folder / "exhibits")
    return Matrix(folder / "exhibits", folder / "cells")


def test_each_setting_that_may_name_a_file_is_a_door_or_says_why_not():
    found = {setting for schema in PROGRAM_SCHEMAS.values() for setting in text_settings(schema)}
    unknown = found - TAKES.keys() - NOT_OF_A_STRANGER.keys()
    assert not unknown, f"put {sorted(unknown)} into TAKES or NOT_OF_A_STRANGER of tests/faults/doors.py"


@pytest.mark.faults
def test_exhibits_hold_the_groups_of_files_that_the_matrix_names(matrix: Matrix):
    assert {name: set(HELD[name]) for name in EXHIBITS} == {name: matrix.groups(name) for name in EXHIBITS}


@pytest.mark.faults
def test_matrix_has_300_cells(matrix: Matrix):
    counts = Counter(str(door) for door in DOORS for group in COUNTS for _ in matrix.cells(door, group))
    assert counts.total() >= 300, counts
    assert all(counts[str(door)] for door in DOORS)


@pytest.mark.faults
@pytest.mark.parametrize("door", DOORS, ids=str)
def test_program_takes_a_strangers_files_as_they_are(door: Door, matrix: Matrix):
    ended = matrix.reference(door)
    if door.is_refused:
        assert (ended.status, ended.output.count("error: ")) == (1, 1), ended.output
    else:
        advice = f"tell NEEDS of tests/faults/doors.py what {door.program} needs beside {door.setting}"
        assert ended.status == 0, f"{advice}: {ended.output}"
    assert ended.findings == []


@pytest.mark.faults
@pytest.mark.parametrize(("door", "group"), CELLS)
def test_file_of_a_stranger_does_no_harm(door: Door, group: str, matrix: Matrix):
    found = {str(cell): problems for cell in matrix.cells(door, group) if (problems := matrix.problems(cell))}
    assert not found, "\n".join(f"{cell} -> {'; '.join(problems)}" for cell, problems in found.items())


_ = Path
