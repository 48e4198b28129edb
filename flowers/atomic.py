"""Files that are either whole or not there."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames it to `path` once the block ends without an error.

    A process killed inside the block leaves `path` as it was. The name beside it holds the machine's name and the
    process's number, so that two processes that write the same file do not mix: the last rename wins, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder` to fill, and renames it to `folder` once the block ends without an error.

    To be called under a lock: what a killed process left there is cleared first.
    """
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 with the line ends that it has, whole or not at all.

    A file name in `text` that is no UTF-8 (Linux allows any bytes) is written as the bytes that it is.
    """
    with writing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
