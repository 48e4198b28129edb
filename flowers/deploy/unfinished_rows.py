"""Rows of predictions that are on the disk as soon as they are known, so that a killed program goes on behind them."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

Row = TypeVar("Row", bound=tuple[Any, ...])

_LONGEST_LINE = 2**22  # bytes; the probabilities of 100,000 classes


class UnfinishedRows(Generic[Row]):
    """A file of rows beside the output: a line with what they depend on, then a JSON list for each row.

    Rows of other settings are dropped, and so is everything from the first row on that is torn, that is not of the next
    file, or whose file has changed since.

    Args:
        output: The file that the rows are for. FILE.unfinished is the file of rows.
        parse: Makes a row of a list of its values, or raises ValueError. Its first value is the path of its file.
        origin: What the rows depend on beside the files, as JSON.
        files: The files, in the order of the rows.

    Raises:
        ValueError: Another process writes the rows.
        OSError: The file cannot be written, or is no regular file.
    """

    def __init__(
        self, output: Path, parse: Callable[[Any], Row], origin: Mapping[str, Any], files: Sequence[str]
    ) -> None:
        self.path = output.with_name(f"{output.name}.unfinished")
        self._parse, self._origin = parse, _line(origin)
        output.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(f"{output}: another process writes it: wait for it, or give another output=") from error
        self.done = self._keep(files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _keep(self, files: Sequence[str]) -> int:
        """Cut the file behind the last row that counts, and return how many rows do."""
        written, done = os.fstat(self._file.fileno()).st_mtime_ns, 0
        if self._file.readline(_LONGEST_LINE) != self._origin:
            self._cut(0)
            self._write(self._origin)
            return 0
        end = self._file.tell()
        for file in files:
            row = self._read()
            if row is None or row[0] != file or _changed(file) >= written:
                break
            done, end = done + 1, self._file.tell()
        self._cut(end)
        return done

    def _cut(self, end: int) -> None:
        self._file.seek(end)
        self._file.truncate()

    def _read(self) -> Row | None:
        line = self._file.readline(_LONGEST_LINE)
        try:
            return self._parse(json.loads(line)) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            return None

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def append(self, row: Row) -> None:
        """Write a row. A program that is killed afterwards has it."""
        self._write(_line(row))

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows."""
        self._file.seek(0)
        self._file.readline()
        while row := self._read():
            yield row

    def delete(self) -> None:
        """Delete the file: its rows are in the output."""
        self.path.unlink(missing_ok=True)


def _line(content: object) -> bytes:
    return json.dumps(content).encode("ascii") + b"\n"


def _changed(file: str) -> int:
    try:
        return Path(file).stat().st_mtime_ns
    except OSError:  # the row says why it cannot be read
        return 0
