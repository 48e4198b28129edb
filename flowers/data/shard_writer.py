"""Write images into shards: tar files in WebDataset's format, with an index."""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import read_error_reason
from flowers.data.remote import RemoteFile
from flowers.data.shards import INDEX_FILE, MANIFEST_FILE, SHARD_FORMAT, SHARD_SPLIT_FILE
from flowers.data.splits import SPLITS, SplitRecord, split_to_csv
from flowers.runtime.config import to_container
from flowers.runtime.files import atomic_write, atomic_write_text
from flowers.runtime.hardware import available_cores
from flowers.runtime.launch import exit_with_parent
from flowers.runtime.logging import progress_bar

log = logging.getLogger(__name__)


_TAR_BLOCK = 512  # bytes: all in a tar file is a multiple of them


class ShardEntry(NamedTuple):
    """A photo to be packed: its line in split.csv, its file's size in bytes, its class's number."""

    line: int
    row: SplitRecord
    size: int
    label: int


class ShardSpec(NamedTuple):
    """A shard to be written: the folder of the photos, where to write it, what lies in it one after the other."""

    root: Path
    path: Path
    members: list[ShardEntry]


def write_shards(
    root: Path, rows: Sequence[SplitRecord], classes: Sequence[str], output: Path, shard_mb: float, workers: int
) -> int:
    """Writes the photos of `rows`, which lie below `root`, into shards in the folder `output`; returns how many shards.

    A shard has the photos of one split. Those of val and test lie in the order of `rows`; those of train are mixed, so
    that any shard is a fair sample. What an interrupted call has written is taken, and what it had not is written.

    Raises ValueError where `output` holds something else, or where a photo has changed or cannot be read.
    """
    members = _list_entries(root, rows, classes)
    shards = [shard for name in SPLITS for shard in _plan_shards(root, output, name, members, int(shard_mb * 2**20))]
    _prepare_output(
        output,
        {
            SHARD_SPLIT_FILE: split_to_csv(rows).encode(errors="surrogateescape"),
            INDEX_FILE: _build_index(shards, len(rows)),
        },
    )
    if not (output / MANIFEST_FILE).exists():
        digests = progress_bar(_write_all(shards, workers), "Packing", len(shards))
        names = [
            RemoteFile(shard.path.name, _shard_size(shard), sha256)
            for shard, sha256 in zip(shards, digests, strict=True)
        ]
        manifest = {"format": SHARD_FORMAT, "photos": len(rows), "classes": list(classes)}
        manifest |= {
            "split": _describe_file(output / SHARD_SPLIT_FILE),
            "places": _describe_file(output / INDEX_FILE),
            "shards": names,
        }
        atomic_write_text(output / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return len(shards)


def _list_entries(root: Path, rows: Sequence[SplitRecord], classes: Sequence[str]) -> list[ShardEntry]:
    numbers = {name: number for number, name in enumerate(classes)}
    return [
        ShardEntry(line, row, (root / row.path).stat().st_size, numbers[row.label]) for line, row in enumerate(rows)
    ]  # fmt: skip


def _plan_shards(root: Path, output: Path, split: str, members: Iterable[ShardEntry], size: int) -> list[ShardSpec]:
    chosen = [member for member in members if member.row.split == split]
    if split == "train":
        chosen.sort(key=lambda member: (member.row.sha256, member.row.path))
    starts = np.cumsum([0, *(_entry_size(member) for member in chosen)])[:-1] // size
    groups = [chosen[start:end] for start, end in _equal_runs(starts)]
    return [ShardSpec(root, output / f"{split}-{number:06}.tar", group) for number, group in enumerate(groups)]


def _equal_runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where each run of equal values starts and ends."""
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(zip([0, *ends[:-1]], ends, strict=True)) if len(values) else []


def _entry_size(member: ShardEntry) -> int:
    """Bytes of a shard that a photo takes: two headers, its content filled up, and the number of its class."""
    return 3 * _TAR_BLOCK + -(-member.size // _TAR_BLOCK) * _TAR_BLOCK


def _shard_size(shard: ShardSpec) -> int:
    return sum(map(_entry_size, shard.members)) + 2 * _TAR_BLOCK  # two empty blocks end a tar file


def _build_index(shards: Sequence[ShardSpec], count: int) -> bytes:
    places = np.zeros((count, 3), dtype=np.int64)
    for number, shard in enumerate(shards):
        start = 0
        for member in shard.members:
            places[member.line] = number, start + _TAR_BLOCK, member.size
            start += _entry_size(member)
    content = io.BytesIO()
    np.save(content, places)
    return content.getvalue()


def _prepare_output(output: Path, files: dict[str, bytes]) -> None:
    """Makes sure that the folder is that of these photos, and writes what says so."""
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if there - {SHARD_SPLIT_FILE, INDEX_FILE} == there != set() or output.is_file():
        raise ValueError(f"output={output} holds something else: give a new folder")
    for name, content in files.items():
        path = output / name
        if path.exists() and path.read_bytes() != content:
            raise ValueError(
                f"output={output} holds shards of other photos or settings: remove it, or give a new folder"
            )
        if not path.exists():
            with atomic_write(path) as beside:
                beside.write_bytes(content)
    for left in output.glob(".*.part"):  # by a process that was killed
        left.unlink()


def _write_all(shards: Sequence[ShardSpec], workers: int) -> Iterable[str]:
    """The SHA-256 of each shard, once it is there."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(workers, context, initializer=exit_with_parent, initargs=(os.getpid(),)) as pool:
        yield from pool.map(_write_shard, shards)


def _write_shard(shard: ShardSpec) -> str:
    """Writes a shard where it is not there whole; returns its SHA-256."""
    try:
        if not (shard.path.exists() and shard.path.stat().st_size == _shard_size(shard)):
            with atomic_write(shard.path) as beside, beside.open("wb") as file:
                for member in shard.members:
                    content, name = _read_unchanged(shard.root, member), f"{member.line:09}"
                    file.write(_tar_entry(name + _suffix(member.row.path), content))
                    file.write(_tar_entry(f"{name}.cls", str(member.label).encode()))
                file.write(bytes(2 * _TAR_BLOCK))
        with shard.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{shard.path} cannot be written: {error.strerror or error}") from error


def _read_unchanged(root: Path, member: ShardEntry) -> bytes:
    try:
        content = (root / member.row.path).read_bytes()
    except OSError as error:
        raise ValueError(f"{member.row.path}: {read_error_reason(error)}") from error
    if hashlib.sha256(content).hexdigest() != member.row.sha256:
        raise ValueError(f"{member.row.path} has changed since it was checked: start again")
    return content


def _tar_entry(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _TAR_BLOCK)


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) and suffix != ".cls" else ".img"


def _describe_file(path: Path) -> RemoteFile:
    content = path.read_bytes()
    return RemoteFile(path.name, len(content), hashlib.sha256(content).hexdigest())


def run_packing(cfg: DictConfig) -> int:
    """Writes the photos that `cfg` names into shards, with their split; returns how many photos there are."""

    if cfg.shard_mb <= 0 or (cfg.workers is not None and cfg.workers < 1):
        raise ValueError(f"shard_mb={cfg.shard_mb} workers={cfg.workers}: wanted more than 0")
    root, output = Path(cfg.photos).resolve(), Path(cfg.output).resolve()
    if output.is_relative_to(root):
        raise ValueError(f"output={output} lies within photos={root}: give another folder")
    data = ImageDataModule(root, **to_container(cfg.data))
    rows, classes = data.rows, data.classes
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        shards = write_shards(root, rows, classes, output, cfg.shard_mb, cfg.workers or available_cores())
    counts = ", ".join(f"{data.counts(split).total():,} {split}" for split in ("train", "val", "test"))
    Console().print(f"{len(rows):,} photos ({counts}) in {shards} shards: {output}", soft_wrap=True, highlight=False)
    return len(rows)
