"""Read a table as texts: CSV with any usual delimiter and encoding, or JSON Lines."""

import codecs
import csv
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flowers.runtime.files import open_regular
from flowers.runtime.text import MAX_CSV_BYTES, one_line, read_csv
from flowers.settings.schema.values import JSON_LINES, TABLE_SUFFIXES

log = logging.getLogger(__name__)

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 2**16  # bytes from which the delimiter is found
_CHUNK = 2**20


class Table(NamedTuple):
    """A table.

    Attributes:
        name: Its path, for messages.
        columns: The names of the columns, all different.
        rows: Texts, one for each column; an empty cell is an empty text.
    """

    name: str
    columns: list[str]
    rows: list[list[str]]

    def cells(self, column: str) -> list[str]:
        """Return the texts of a column."""
        number = self.columns.index(column)
        return [row[number] for row in self.rows]


def is_table(path: str | Path) -> bool:
    """Return whether a path is that of a file that `read_table` reads, by its ending."""
    return Path(path).suffix.lower() in TABLE_SUFFIXES and Path(path).is_file()


def check_exists(path: str | Path) -> None:
    """Raise ValueError if there is nothing where a table should be."""
    if not Path(path).exists():
        raise ValueError(
            f"no table at {one_line(path)}: expected a file with a row for each photo (data.table=labels.csv)"
        )


def read_table(path: str | Path) -> Table:
    """Return the content of a table.

    Raises:
        ValueError: There is no such file, or it is none of these kinds, or a row has other cells than the first line.
    """
    name = one_line(path)
    check_exists(path)
    suffix = Path(path).suffix.lower()
    if suffix not in TABLE_SUFFIXES or Path(path).is_dir():
        raise ValueError(
            f"{name} is no table: expected a file whose name ends in one of {', '.join(TABLE_SUFFIXES)}, or a folder "
            "of Parquet files"
        )
    try:
        columns, *rows = _json_rows(path) if suffix in JSON_LINES else _csv_rows(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{name} cannot be read as a table: {reason}") from error
    return make_table(name, columns, rows)


def make_table(name: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Return a table of columns and rows.

    Raises:
        ValueError: Two columns have one name, there are no rows, or a row has other cells than there are columns.
    """
    columns = [column.strip() for column in columns]
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise ValueError(f"{name} has two columns {one_line(twice)}: rename one")
    if not rows:
        raise ValueError(f"{name} has no rows: expected a line with the names of the columns, and one for each photo")
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ValueError(
                f"{name}, line {number}: {len(row)} cells, expected {len(columns)}, as in the first line: "
                f"{one_line(', '.join(columns))}"
            )
    return Table(name, columns, rows)


def _csv_rows(path: str | Path) -> list[list[str]]:
    encoding = _encoding(path)
    if not (rows := read_csv(path, delimiter=_delimiter(path, encoding), encoding=encoding)):
        raise ValueError("it is empty")
    return rows


def _encoding(path: str | Path) -> str:
    """Return the encoding of a text file: UTF-8, UTF-16 with its mark, or else that of Windows in western Europe."""
    with open_regular(path) as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            log.warning("%s is not in UTF-8: reading it as Windows-1252", one_line(path))
            return "cp1252"
    return "utf-8-sig"


def _delimiter(path: str | Path, encoding: str) -> str:
    """Return what stands between the cells of a file: what divides its first lines into the same number of cells."""
    with open_regular(path) as file:
        sample = file.read(_SAMPLE)
        is_whole = len(sample) < _SAMPLE
    lines = codecs.getincrementaldecoder(encoding)("replace").decode(sample).splitlines()
    found = []
    for delimiter in _DELIMITERS:
        rows = [row for row in csv.reader(lines if is_whole else lines[:-1], delimiter=delimiter) if row]
        counts = [len(row) for row in rows]
        if counts and counts[0] > 1:
            found.append((counts.count(counts[0]) / len(counts), counts[0], delimiter))
    return max(found, key=lambda each: each[:2], default=(0, 0, ","))[2]


def _json_rows(path: str | Path) -> list[list[str]]:
    objects = [*_json_objects(path)]
    columns = list(dict.fromkeys(name for each in objects for name in each))
    return [columns, *([cell_text(each.get(name)) for name in columns] for each in objects)]


def _json_objects(path: str | Path) -> Iterator[dict[str, Any]]:
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_CSV_BYTES:
            raise ValueError(f"it has {size:,} bytes, expected at most {MAX_CSV_BYTES:,}")
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
            if not isinstance(content, dict):
                raise ValueError(f'line {number}: expected an object such as {{"path": "1.jpg", "label": "rose"}}')
            yield content


def cell_text(value: object) -> str:
    """Return the text of a value: of true, 3 and null, "true", "3" and an empty text."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
