import csv
import os
from pathlib import Path

import pytest

from flowers.runtime.text import escape_markdown, one_line, printable, read_csv, to_csv, write_csv

NAMES = [
    "=1+1",
    "+a",
    "-b",
    "@c",
    "'=d",
    "''@e",
    "'f",
    "a\rb",
    "a\nb",
    'a"b',
    "a,b",
    "\tg",
    os.fsdecode(b"caf\xe9"),
    "$x_",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_csv_restores_any_name(name: str, tmp_path: Path):
    write_csv(tmp_path / "names.csv", [["path", name], [name, -1.5]])
    assert read_csv(tmp_path / "names.csv") == [["path", name], [name, "-1.5"]]


@pytest.mark.parametrize("name", NAMES)
def test_csv_cells_start_no_formula(name: str):
    (cell,) = next(csv.reader([*to_csv([[name or "x"]]).splitlines(keepends=True)]))
    assert cell[0] not in "=+-@\t\r"


def test_csv_of_plain_cells_is_that_of_the_standard_library():
    rows: list[list[object]] = [["path", "class", ""], ["a b/1.jpg", 'say "hi"', 0.25], ["x;y", None, True]]
    assert to_csv(rows) == 'path,class,\na b/1.jpg,"say ""hi""",0.25\nx;y,,True\n'


def test_read_csv_names_the_fault(tmp_path: Path):
    path = tmp_path / "damaged.csv"
    path.write_bytes(b'a,"b\n')
    with pytest.raises(ValueError, match="unexpected end of data"):
        read_csv(path)
    path.write_bytes(b"a\0b\n")
    with pytest.raises(ValueError, match="null byte"):
        read_csv(path)


def test_printable_escapes_what_changes_a_terminal():
    assert printable("a\x1b[31mb\rc\u202ed\n") == "a\\x1b[31mb\\rc\\u202ed\n"
    assert printable(os.fsdecode(b"caf\xe9 \xc3\xa9")) == "caf\\udce9 é"
    assert one_line("a\nb\tc") == "a\\nb\\tc"


def test_escape_markdown_leaves_no_markdown_and_no_html():
    assert escape_markdown("a_b *c* <b>&amp; [x](http://y)\x1b") == (r"a\_b \*c\* \<b\>\&amp; \[x\](http\:\/\/y)\\x1b")


@pytest.mark.parametrize(
    ("content", "size", "reason"),
    [(b"a" * 2**22, 2**22, "a line has more than"), (b"a,b\n", 2**32, "it has 4,294,967,296 bytes, expected at most")],
)
def test_read_csv_is_bounded(tmp_path: Path, content: bytes, size: int, reason: str):
    (tmp_path / "x.csv").write_bytes(content)
    os.truncate(tmp_path / "x.csv", size)
    with pytest.raises((ValueError, OSError), match=reason):
        read_csv(tmp_path / "x.csv")


def test_read_csv_opens_no_fifo(tmp_path: Path):
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(OSError, match="not a regular file"):
        read_csv(tmp_path / "x.csv")
