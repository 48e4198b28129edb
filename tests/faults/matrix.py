"""Cells: a program is given a stranger's folder in which a payload is in the place of one file. What must hold."""

import os
import platform
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from tests.faults.confinement import STRANGER_MODULES, Confinement, Ended, run_confined
from tests.faults.doors import WRITES, Door, exhibit_path, files_of
from tests.faults.payloads import ANY, SECRET, Place, apply, changes_of, group_of, is_wrong, sample

# How many payloads a file gets that a program opens, by its group; one that it does not open gets one.
COUNTS = {
    "checkpoint": 6,
    "safetensors": 5,
    "json": 6,
    "yaml": 10,
    "csv": 5,
    "npy": 3,
    "tar": 2,
    "photo": 5,
    "other": 1,
}


class Cell(NamedTuple):
    """Payloads in the places of files that a program is given. The files are relative to the exhibit."""

    door: Door
    changes: tuple[tuple[Path, str], ...]

    def __str__(self) -> str:
        shown = [f"{file}: {payload}" for file, payload in self.changes]
        return f"{self.door} {', '.join(shown[:3])}{' …' if shown[3:] else ''}"


class Matrix:
    """Runs cells on exhibits.

    Args:
        exhibits: The folder of `make_exhibits`.
        folder: For what the cells write.
        method: See `run_confined`.
    """

    def __init__(self, exhibits: Path, folder: Path, method: str = "forkserver") -> None:
        self.exhibits, self.folder, self.method = exhibits, folder, method
        self.secret, self.victim, self.canary = (folder / "own" / name for name in ("secret", "victim", "canary"))
        self.secret.parent.mkdir(parents=True)
        for path in (self.secret, self.victim):
            path.write_text(f"{SECRET}\n" * 3)
        self.references: dict[Door, Ended] = {}
        self.answers: dict[Door, str] = {}

    def groups(self, exhibit: str) -> set[str]:
        """Return the groups of the files of an exhibit."""
        path = exhibit_path(self.exhibits, exhibit)
        return {group_of(path / file) for file in files_of(path)}

    def reference(self, door: Door) -> Ended:
        """Return how the program ends with an exhibit as it is."""
        if door not in self.references:
            self.references[door] = self._run(door, None)[0]
            self.answers[door] = self._answers()
        return self.references[door]

    def cells(self, door: Door, group: str) -> Iterator[Cell]:
        """Yield the cells of a door for the files of a group: several for a file that the program opens."""
        path, reference = exhibit_path(self.exhibits, door.exhibit), self.reference(door)
        files = [file for file in files_of(path) if group_of(path / file) == group]
        if door.exhibit in ("photos", "pool"):
            files = files[:1]
        if door.exhibit in ("multirun", "search"):  # the others are like the first
            files = [file for file in files if not re.match(r"(1|trials/1)/", str(file))]
        read = [file for file in files if group == "safetensors" or str(path.name / file) in reference.opened]
        read = [] if reference.status else read if group != "tar" else read[:1]
        for file in read:
            payloads = list(changes_of(self._place(path / file)))
            name = re.sub(r"\d{5,}.*", "N", str(file))
            yield from (Cell(door, ((file, each),)) for each in sample(payloads, COUNTS[group], f"{door}{name}"))
        others = [file for file in files if file not in read]
        generator = random.Random(f"{door}{group}")
        if changes := [(file, generator.choice(list(changes_of(self._place(path / file))))) for file in others]:
            yield Cell(door, tuple(changes))

    def wide_cell(self, door: Door, group: str) -> Cell:
        """Return a cell in which each file of a group holds a payload of `ANY`."""
        path = exhibit_path(self.exhibits, door.exhibit)
        files = [file for file in files_of(path) if group_of(path / file) == group]
        return Cell(door, tuple(zip(files, cycle(sample(list(ANY), len(ANY), f"{door}{group}")), strict=False)))

    def problems(self, cell: Cell) -> list[str]:
        """Run a cell and return what does not hold, one line each."""
        ended, problems = self._run(cell.door, cell)
        answers = self.answers.get(cell.door, "")
        if not ended.status and answers and all(is_wrong(payload) for _, payload in cell.changes):
            problems += ["gave other answers"] * (self._answers() != answers)
        lines = ended.output.splitlines()
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        if problems or not ended.status:
            return problems
        if "Traceback" in ended.output:
            return [f"a traceback: {lines[-1]}"]
        # Only a list of photos takes more lines: one for each photo, and one that says what to do.
        is_list = len(errors) == 1 and lines[errors[0]].endswith(":") and cell.door.exhibit in ("photos", "pool")
        if ended.status not in (1, 2) or len(errors) != 1 or not (is_list or errors[0] == len(lines) - 1):
            return [f"status {ended.status}, expected one line of error: {' | '.join(lines[-3:])}"]
        if not self._names("\n".join(lines[errors[0] :]), cell):
            return [f"does not name the file: {lines[-1]}"]
        return []

    def _answers(self) -> str:
        """Return what `flowers.predict` wrote in the last cell; empty for other programs."""
        path = self.folder / "cell" / "out" / "predictions.csv"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _names(self, error: str, cell: Cell) -> bool:
        """Return whether an error names the file, or the folder that was given."""
        given = self.folder / "cell" / "stranger" / exhibit_path(self.exhibits, cell.door.exhibit).name
        named = any(name in error for name in (str(given), *(file.name for file, _ in cell.changes if file.name)))
        # A split in which all photos are near duplicates is right, but too small for a learning curve.
        named = named or (cell.door.exhibit == "split" and "near duplicates stay together" in error)
        # Where on_corrupt=skip leaves out many photos, the class that has too few left is named.
        return named or (len(cell.changes) > 1 and cell.door.exhibit == "photos" and "usable image" in error)

    def _place(self, path: Path) -> Place:
        return Place(path, self.secret, self.victim, self.canary)

    def _run(self, door: Door, cell: Cell | None) -> tuple[Ended, list[str]]:
        source, folder = exhibit_path(self.exhibits, door.exhibit), self.folder / "cell"
        shutil.rmtree(folder, ignore_errors=True)
        given = folder / "stranger" / source.name
        given.parent.mkdir(parents=True)
        shutil.copytree(source, given) if source.is_dir() else shutil.copy(source, given)
        for name in STRANGER_MODULES if door.exhibit not in ("photos", "pool") else ():
            module = (given if given.is_dir() else given.parent) / f"{name}.py"
            module.write_text(f"open({str(self.canary)!r}, 'w').close()\n")
        before_own = [*_fingerprint(self.secret.parent), *_fingerprint(self.exhibits)]
        changes = [(self._place(given / file), payload) for file, payload in cell.changes] if cell else []
        prefixes = WRITES.get(door.program, ())
        planted = (
            [given / name for name in (*prefixes, "report.html", "mistakes.csv")] if prefixes and given.is_dir() else []
        )
        prepare = partial(_prepare, changes, folder / "before", given.parent, planted, self.victim)
        ended = run_confined(
            Confinement(
                door.program,
                door.arguments(self.exhibits, given, folder / "out"),
                folder,
                given.parent,
                [given, self.exhibits / "run"] if prefixes else [],
                {"SECRET_TOKEN": SECRET},
                prepare,
                door.program == "app",
            ),
            self.method,
        )
        problems = list(ended.findings)
        after_own = [*_fingerprint(self.secret.parent), *_fingerprint(self.exhibits)]
        if changed := _changed(before_own, after_own, prefixes):
            problems.append(f"changed what is not its own: {changed[0]}")
        self.canary.unlink(missing_ok=True)
        if (folder / "before").exists() and ended.status >= 0:
            before = (folder / "before").read_text(errors="surrogateescape").split("\n")
            if changed := _changed(before, _fingerprint(given.parent), prefixes):
                problems.append(f"changed the folder of the stranger: {changed[0]}")
        if SECRET in ended.output:
            problems.append(
                "printed the secret: " + next(line for line in ended.output.splitlines() if SECRET in line)[:300]
            )
        for path in (folder / "out", folder / "home", folder / "work"):
            problems += [f"wrote the secret to {each.relative_to(folder)}" for each in _holding(path, SECRET)]
        return ended, problems


def _prepare(
    changes: Sequence[tuple[Place, str]], listing: Path, given: Path, planted: Sequence[Path], victim: Path
) -> None:
    """Make the changes, plant links where temporary files could be expected, and list the files."""
    for place, payload in changes:
        apply(place, payload)
    for path in planted:
        path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part").symlink_to(victim)
    listing.write_text("\n".join(_fingerprint(given)), errors="surrogateescape")


def _fingerprint(folder: Path) -> list[str]:
    """Return a line for each file below a folder, which changes with the file."""
    lines = []
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            path = f"{parent}/{name}"
            found = os.lstat(path)
            what = (found.st_mode, found.st_ino) + ((found.st_size, found.st_mtime_ns) if name in files else ())
            shown = path.encode(errors="surrogateescape").decode(errors="backslashreplace").replace("\n", "\\n")
            lines.append(f"{shown}\t{what}")
    return lines


def _changed(before: Sequence[str], after: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """Return the lines of two fingerprints that differ, but for files whose names begin with one of `allowed`."""
    lines = sorted({*before, ""} ^ {*after, ""})
    return [line for line in lines if not Path(line.split("\t")[0]).name.startswith(tuple(allowed) or ("\0",))]


def _holding(folder: Path, text: str) -> Iterator[Path]:
    """Yield the files below a folder that hold a text."""
    for path in folder.rglob("*"):
        if (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_size < 1 << 28
            and text.encode() in path.read_bytes()
        ):
            yield path
