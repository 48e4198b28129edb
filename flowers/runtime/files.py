"""Files that are either whole or absent, JSON files, and the cache folder."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar


def cache_dir() -> Path:
    """The folder for what is computed once and kept: `$FLOWERS_CACHE`, or `flowers` in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FLOWERS_CACHE") or user / "flowers")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
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
def atomic_directory(folder: Path) -> Iterator[Path]:
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


def atomic_write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 with the line ends that it has, whole or not at all.

    A file name in `text` that is no UTF-8 (Linux allows any bytes) is written as the bytes that it is.
    """
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


T = TypeVar("T")


CHUNK_SECONDS = 30.0  # of work in a piece


def chunk_by_time(items: Iterable[T]) -> Iterator[list[T]]:
    """Yields `items` in lists, each of what came within `SECONDS`."""
    piece: list[T] = []
    start = time.monotonic()
    for item in items:
        piece.append(item)
        if time.monotonic() - start >= CHUNK_SECONDS:
            yield piece
            piece, start = [], time.monotonic()
    if piece:
        yield piece


def write_json(result: Mapping[str, Any], path: str | Path) -> None:
    """Writes JSON for people: indented, whole or not at all."""
    atomic_write_text(Path(path), json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads what `save` wrote."""
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))
