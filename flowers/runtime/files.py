"""Atomic writes, JSON files, and the cache folder."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CHUNK_SECONDS = 30.0  # a killed program loses at most this much work


def cache_dir() -> Path:
    """Return the cache folder: `$FLOWERS_CACHE`, or `flowers` in the user's cache folder."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FLOWERS_CACHE") or user_cache / "flowers")


def evict_least_recently_used(files: Iterable[Path], max_bytes: int) -> None:
    """Delete the files with the oldest modification time until the rest fits into `max_bytes`.

    Empty files, such as lock files, free no space and stay. Other processes may delete the same files meanwhile.

    Args:
        files: The files that share the space. Their users touch them (`os.utime`) on each use.
        max_bytes: How much the remaining files may take together; below 0, as after subtracting the size of a file
            to come, no file remains.
    """
    found = []
    for path in files:
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    surplus = sum(size for _, size, _ in found) - max_bytes
    for _, size, path in sorted(found):
        if surplus <= 0:
            break
        if size:
            path.unlink(missing_ok=True)
            surplus -= size


def chunk_by_time(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield `items` in lists, each with the items of about `CHUNK_SECONDS` seconds."""
    chunk: list[T] = []
    start = time.monotonic()
    for item in items:
        chunk.append(item)
        if time.monotonic() - start >= CHUNK_SECONDS:
            yield chunk
            chunk, start = [], time.monotonic()
    if chunk:
        yield chunk


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if the block ends without an error.

    A process that is killed inside the block leaves `path` unchanged. The temporary name contains the host name and
    the process id, so that two processes can write the same file: the last rename wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Yield an empty folder next to `folder`; rename it to `folder` if the block ends without an error.

    Hold a lock around it: the temporary folder that a killed process left behind is deleted first.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically and with its line ends unchanged.

    File names that are not valid UTF-8 (Linux allows any bytes) are written as their original bytes.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def write_json(content: Mapping[str, Any], path: str | Path) -> None:
    """Write `content` as indented JSON, atomically.

    Raises:
        ValueError: A number is infinite or not a number.
    """
    atomic_write_text(Path(path), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that `write_json` wrote."""
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))
