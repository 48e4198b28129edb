"""Write images into shards; `shards.py` describes the format.

The worker processes import this module: it imports neither torch nor lightning, which take seconds.
"""

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
from numpy.typing import NDArray

from flowers.data.images import read_unchanged
from flowers.data.remote import RemoteFile, file_sha256
from flowers.data.sources.shard_format import INDEX_FILE, MANIFEST_FILE, SHARD_FORMAT, SHARD_SPLIT_FILE
from flowers.data.splits import SPLITS, SplitRecord, split_to_csv
from flowers.runtime.files import DiskFullError, atomic_write, atomic_write_text
from flowers.runtime.interrupt import ignore_stop_signals
from flowers.runtime.launch import exit_with_parent
from flowers.runtime.logging import progress_bar
from flowers.runtime.machine_errors import machine_error_text
from flowers.runtime.text import one_line

log = logging.getLogger(__name__)

_TAR_BLOCK = 512  # bytes; all parts of a tar file are multiples of it


class ShardEntry(NamedTuple):
    """An image to pack.

    Attributes:
        line: Its line in split.csv, from 0.
        record: Its path, class, split and digest.
        size: Size of the file in bytes.
        label: Class number.
    """

    line: int
    record: SplitRecord
    size: int
    label: int


class ShardSpec(NamedTuple):
    """A shard to write.

    Attributes:
        root: Folder of the images.
        path: Where to write the shard.
        entries: The images in the order in which they are written.
    """

    root: Path
    path: Path
    entries: list[ShardEntry]


def write_shards(
    root: Path,
    records: Sequence[SplitRecord],
    classes: Sequence[str],
    output: Path,
    shard_mb: float,
    workers: int,
    gray_peak: int = 0,
) -> int:
    """Write images into shards.

    A shard has images of one split. In val and test, the images have the order of `records`. In train they are mixed,
    so that each shard is a fair sample. After an interruption, a second call writes only the missing shards.

    Args:
        root: Folder of the images.
        records: The images with their split.
        classes: Class names in the order of the class numbers.
        output: Folder for the shards.
        shard_mb: Approximate size of a shard in MiB.
        workers: Number of processes that write.
        gray_peak: See `Manifest`.

    Returns:
        The number of shards.

    Raises:
        ValueError: If `output` contains something else, or if an image has changed or cannot be read.
    """
    entries = _list_entries(root, records, classes)
    shards = [shard for split in SPLITS for shard in _plan_shards(root, output, split, entries, int(shard_mb * 2**20))]
    _prepare_output(
        output,
        {
            SHARD_SPLIT_FILE: split_to_csv(records).encode(errors="surrogateescape"),
            INDEX_FILE: _build_index(shards, len(records)),
        },
    )
    if not (output / MANIFEST_FILE).exists():
        digests = progress_bar(_write_all(shards, workers), "Packing", len(shards))
        manifest = {
            "format": SHARD_FORMAT,
            "photos": len(records),
            "classes": list(classes),
            "split": _describe_file(output / SHARD_SPLIT_FILE),
            "places": _describe_file(output / INDEX_FILE),
            "shards": [
                RemoteFile(shard.path.name, _shard_size(shard), sha256)
                for shard, sha256 in zip(shards, digests, strict=True)
            ],
        } | ({"gray_peak": gray_peak} if gray_peak else {})
        atomic_write_text(output / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return len(shards)


def _list_entries(root: Path, records: Sequence[SplitRecord], classes: Sequence[str]) -> list[ShardEntry]:
    numbers = {name: number for number, name in enumerate(classes)}
    return [
        ShardEntry(line, record, (root / record.path).stat().st_size, numbers[record.label])
        for line, record in enumerate(records)
    ]


def _plan_shards(root: Path, output: Path, split: str, entries: Iterable[ShardEntry], size: int) -> list[ShardSpec]:
    chosen = [entry for entry in entries if entry.record.split == split]
    if split == "train":
        chosen.sort(key=lambda entry: (entry.record.sha256, entry.record.path))
    numbers = np.cumsum([0, *(_entry_size(entry) for entry in chosen)])[:-1] // size
    groups = [chosen[start:end] for start, end in _equal_runs(numbers)]
    return [ShardSpec(root, output / f"{split}-{number:06}.tar", group) for number, group in enumerate(groups)]


def _equal_runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the start and the end of each run of equal values."""
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(zip([0, *ends[:-1]], ends, strict=True)) if len(values) else []


def _entry_size(entry: ShardEntry) -> int:
    """Return the bytes of a shard that an image takes: two headers, the padded content, and the class number."""
    return 3 * _TAR_BLOCK + -(-entry.size // _TAR_BLOCK) * _TAR_BLOCK


def _shard_size(shard: ShardSpec) -> int:
    return sum(map(_entry_size, shard.entries)) + 2 * _TAR_BLOCK  # two empty blocks end a tar file


def _build_index(shards: Sequence[ShardSpec], count: int) -> bytes:
    index = np.zeros((count, 3), dtype=np.int64)
    for number, shard in enumerate(shards):
        start = 0
        for entry in shard.entries:
            index[entry.line] = number, start + _TAR_BLOCK, entry.size
            start += _entry_size(entry)
    content = io.BytesIO()
    np.save(content, index)
    return content.getvalue()


def _prepare_output(output: Path, files: dict[str, bytes]) -> None:
    """Write the files that identify the images and settings; raise ValueError if `output` belongs to others."""
    existing = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if output.is_file() or (existing and not existing & {SHARD_SPLIT_FILE, INDEX_FILE}):
        raise ValueError(f"output={output} contains something else: give a new folder")
    for name, content in files.items():
        path = output / name
        if path.exists() and path.read_bytes() != content:
            raise ValueError(
                f"output={output} contains shards of other images or settings: delete it, or give a new folder"
            )
        if not path.exists():
            with atomic_write(path) as beside:
                beside.write_bytes(content)
    for partial in output.glob(".*.part"):  # of a process that was killed
        partial.unlink()


def _write_all(shards: Sequence[ShardSpec], workers: int) -> Iterable[str]:
    """Write the shards; yield the SHA-256 of each once it is complete."""
    context = multiprocessing.get_context("spawn")  # the threads of torch do not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        yield from pool.map(_write_shard, shards)


def _start_worker(parent: int) -> None:
    ignore_stop_signals()  # a terminal sends Ctrl-C to all processes; the parent stops the workers
    exit_with_parent(parent)


def _write_shard(shard: ShardSpec) -> str:
    """Write a shard unless it is complete; return its SHA-256."""
    try:
        if not (shard.path.exists() and shard.path.stat().st_size == _shard_size(shard)):
            with atomic_write(shard.path, _shard_size(shard)) as beside, beside.open("wb") as file:
                for entry in shard.entries:
                    content = read_unchanged(shard.root / entry.record.path, entry.record.sha256)
                    name = f"{entry.line:09}"
                    file.write(_tar_member(name + _suffix(entry.record.path), content))
                    file.write(_tar_member(f"{name}.cls", str(entry.label).encode()))
                file.write(bytes(2 * _TAR_BLOCK))
        return file_sha256(shard.path)
    except DiskFullError as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        text = machine_error_text(error) or f"{one_line(shard.path)} cannot be written: {error.strerror or error}"
        raise ValueError(text) from error


def _tar_member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _TAR_BLOCK)


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) and suffix != ".cls" else ".img"


def _describe_file(path: Path) -> RemoteFile:
    content = path.read_bytes()
    return RemoteFile(path.name, len(content), hashlib.sha256(content).hexdigest())
