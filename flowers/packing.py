"""Writes photos into shards, several at a time, each whole or not at all; see `flowers.shards` for the format."""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import tarfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowers import atomic, photos, progress
from flowers.mirror import Remote
from flowers.shards import FORMAT, MANIFEST, PLACES, SPLIT
from flowers.split import SPLITS, Row, to_csv

log = logging.getLogger(__name__)

_BLOCK = 512  # bytes: all in a tar file is a multiple of them


class Member(NamedTuple):
    """A photo to be packed: its line in split.csv, its file's size in bytes, its class's number."""

    line: int
    row: Row
    size: int
    label: int


class Shard(NamedTuple):
    """A shard to be written: the folder of the photos, where to write it, what lies in it one after the other."""

    root: Path
    path: Path
    members: list[Member]


def write(root: Path, rows: Sequence[Row], classes: Sequence[str], output: Path, shard_mb: float, workers: int) -> int:
    """Writes the photos of `rows`, which lie below `root`, into shards in the folder `output`; returns how many shards.

    A shard has the photos of one split. Those of val and test lie in the order of `rows`; those of train are mixed, so
    that any shard is a fair sample. What an interrupted call has written is taken, and what it had not is written.

    Raises ValueError where `output` holds something else, or where a photo has changed or cannot be read.
    """
    members = _members(root, rows, classes)
    shards = [shard for name in SPLITS for shard in _shards(root, output, name, members, int(shard_mb * 2**20))]
    _begin(output, {SPLIT: to_csv(rows).encode(errors="surrogateescape"), PLACES: _places(shards, len(rows))})
    if not (output / MANIFEST).exists():
        digests = progress.bar(_written(shards, workers), "Packing", len(shards))
        names = [Remote(shard.path.name, _size(shard), sha256) for shard, sha256 in zip(shards, digests, strict=True)]
        manifest = {"format": FORMAT, "photos": len(rows), "classes": list(classes)}
        manifest |= {"split": _remote(output / SPLIT), "places": _remote(output / PLACES), "shards": names}
        atomic.write_text(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return len(shards)


def _members(root: Path, rows: Sequence[Row], classes: Sequence[str]) -> list[Member]:
    numbers = {name: number for number, name in enumerate(classes)}
    return [
        Member(line, row, (root / row.path).stat().st_size, numbers[row.label]) for line, row in enumerate(rows)
    ]  # fmt: skip


def _shards(root: Path, output: Path, split: str, members: Iterable[Member], size: int) -> list[Shard]:
    chosen = [member for member in members if member.row.split == split]
    if split == "train":
        chosen.sort(key=lambda member: (member.row.sha256, member.row.path))
    starts = np.cumsum([0, *(_span(member) for member in chosen)])[:-1] // size
    groups = [chosen[start:end] for start, end in _runs(starts)]
    return [Shard(root, output / f"{split}-{number:06}.tar", group) for number, group in enumerate(groups)]


def _runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where each run of equal values starts and ends."""
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(zip([0, *ends[:-1]], ends, strict=True)) if len(values) else []


def _span(member: Member) -> int:
    """Bytes of a shard that a photo takes: two headers, its content filled up, and the number of its class."""
    return 3 * _BLOCK + -(-member.size // _BLOCK) * _BLOCK


def _size(shard: Shard) -> int:
    return sum(map(_span, shard.members)) + 2 * _BLOCK  # two empty blocks end a tar file


def _places(shards: Sequence[Shard], count: int) -> bytes:
    places = np.zeros((count, 3), dtype=np.int64)
    for number, shard in enumerate(shards):
        start = 0
        for member in shard.members:
            places[member.line] = number, start + _BLOCK, member.size
            start += _span(member)
    content = io.BytesIO()
    np.save(content, places)
    return content.getvalue()


def _begin(output: Path, files: dict[str, bytes]) -> None:
    """Makes sure that the folder is that of these photos, and writes what says so."""
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if there - {SPLIT, PLACES} == there != set() or output.is_file():
        raise ValueError(f"output={output} holds something else: give a new folder")
    for name, content in files.items():
        path = output / name
        if path.exists() and path.read_bytes() != content:
            raise ValueError(
                f"output={output} holds shards of other photos or settings: remove it, or give a new folder"
            )
        if not path.exists():
            with atomic.writing(path) as beside:
                beside.write_bytes(content)
    for left in output.glob(".*.part"):  # by a process that was killed
        left.unlink()


def _written(shards: Sequence[Shard], workers: int) -> Iterable[str]:
    """The SHA-256 of each shard, once it is there."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        yield from pool.map(_write, shards)


def _end_with_parent() -> None:
    """Ends this process where its parent was killed; else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(shard: Shard) -> str:
    """Writes a shard where it is not there whole; returns its SHA-256."""
    try:
        if not (shard.path.exists() and shard.path.stat().st_size == _size(shard)):
            with atomic.writing(shard.path) as beside, beside.open("wb") as file:
                for member in shard.members:
                    content, name = _content(shard.root, member), f"{member.line:09}"
                    file.write(_entry(name + _suffix(member.row.path), content))
                    file.write(_entry(f"{name}.cls", str(member.label).encode()))
                file.write(bytes(2 * _BLOCK))
        with shard.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{shard.path} cannot be written: {error.strerror or error}") from error


def _content(root: Path, member: Member) -> bytes:
    try:
        content = (root / member.row.path).read_bytes()
    except OSError as error:
        raise ValueError(f"{member.row.path}: {photos.reason(error)}") from error
    if hashlib.sha256(content).hexdigest() != member.row.sha256:
        raise ValueError(f"{member.row.path} has changed since it was checked: start again")
    return content


def _entry(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _BLOCK)


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) and suffix != ".cls" else ".img"


def _remote(path: Path) -> Remote:
    content = path.read_bytes()
    return Remote(path.name, len(content), hashlib.sha256(content).hexdigest())
