"""Text from file names, class names and settings, which may hold any characters: on a terminal and in CSV files.

Names come from strangers' folders. On Linux a name may hold control characters, and bytes that are not UTF-8, which
Python shows as lone surrogates ("surrogateescape").
"""

import csv
import errno
import io
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from flowers.runtime.files import atomic_write, open_regular

MAX_CSV_BYTES = 512 * 2**20  # split.csv of three million photos
_ERRORS = {"utf-8-sig": "surrogateescape"}  # for bytes that are no text, by the encoding; others lose them
_LONGEST_LINE = 2**22  # characters; the logits of 200,000 classes

# C0 and C1 controls but for tab and newline, line separators, the marks that reverse the order of a text (bidi), and
# lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# What Markdown, its tables, math, links and HTML give a meaning. Any punctuation may follow a backslash:
# https://spec.commonmark.org/0.31.2/#backslash-escapes
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|&~$!:@^=+./]")

# A spreadsheet takes a cell that begins so for a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile("'*[=+\\-@\t\r]")


def printable(text: object) -> str:
    r"""Return a text for a terminal, a figure or a page: control characters and invalid bytes become `\x1b`, `\udce9`.

    Tabs and newlines stay.
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(text))


def one_line(text: object) -> str:
    """Return `printable(text)` with tabs and newlines escaped too: a name in the middle of a line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def readable_duration(seconds: float) -> str:
    """Return a time as people say it: "4.2 s", "12 min 5 s", "5 h 20 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def listed_reasons(reasons: Mapping[str, str], most: int = 50) -> list[str]:
    """Return a line for each of the first `most` names with its reason, and one that counts the others."""
    lines = [f"  {one_line(name)}: {reason}" for name, reason in islice(reasons.items(), most)]
    return lines + [f"  … and {len(reasons) - most:,} more"] * (len(reasons) > most)


def listed_names(names: Iterable[str], count: int = 10) -> str:
    """Return names for a message: the first `count`, and how many more there are."""
    shown = [one_line(name) for name in names]
    return ", ".join(shown[:count]) + (f" and {len(shown) - count:,} more" if len(shown) > count else "")


def shell_setting(key: str, value: object) -> str:
    """Return `key=value` as one pastes it into a shell, whatever characters the value has."""
    return shlex.quote(f"{key}={value}")


def mask_password(url: str) -> str:
    """Return an address without the password in it."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


def escape_markdown(text: object) -> str:
    """Return `one_line(text)` so that Markdown, and HTML in it, shows it as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def class_columns(quantity: str, classes: Iterable[str]) -> list[str]:
    """Return the names of the columns with a quantity of each class: `probability_rose`.

    A class may be called as another column is, such as path; no other column of a table begins as these do.
    """
    return [f"{quantity}_{name}" for name in classes]


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    r"""Return rows as CSV that `read_csv` restores and that a spreadsheet shows without running a formula.

    A text that begins with `=`, `+`, `-`, `@`, a tab or `\r` gets a leading apostrophe. Numbers, true, false and None,
    which becomes an empty cell, are written as they are.
    """
    return "".join(",".join(map(_csv_cell, row)) + "\n" for row in rows)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write `to_csv(rows)`, atomically and row by row; invalid bytes of file names are written as they were."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        for row in rows:
            file.write(to_csv([row]))


def read_csv(
    path: str | Path, max_bytes: int = MAX_CSV_BYTES, delimiter: str = ",", encoding: str = "utf-8-sig"
) -> list[list[str]]:
    """Return the rows of a file that `write_csv` wrote, or of any CSV file.

    Args:
        path: The file.
        max_bytes: Its largest size.
        delimiter: What stands between two cells.
        encoding: That of the file.

    Raises:
        ValueError: It is not CSV, with the reason.
        OSError: It cannot be read, is no regular file, or has more than `max_bytes` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, expected at most {max_bytes:,}", str(path))
        text = io.TextIOWrapper(file, encoding=encoding, errors=_ERRORS.get(encoding, "replace"), newline="")
        try:
            rows = list(csv.reader(_csv_lines(text), delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from error
    return [[cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell for cell in row] for row in rows if row]


def _csv_lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file. One that is too long, or has a null byte, ends it before it is read as a whole."""
    while line := file.readline(_LONGEST_LINE):
        if "\0" in line:
            raise ValueError("it holds a null byte")
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"a line has more than {_LONGEST_LINE:,} characters")
        yield line


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    cell = f"'{value}" if _FORMULA.match(value) else value
    # Not csv.writer: before Python 3.13 it leaves a carriage return without quotes, which no reader then accepts.
    return '"' + cell.replace('"', '""') + '"' if re.search('[",\r\n]', cell) else cell
