"""Read images from shards.

A set of shards is a folder, or an address of such a folder, with these files:

- `train-000000.tar` …, `val-…`, `test-…`: the shards, each with images of one split, in the layout of WebDataset. An
  image is the member `KEY.jpg` (or another suffix), followed by `KEY.cls` with its class number in decimal. KEY is the
  line of the image in split.csv, from 0, in nine digits.
- `split.csv`: one line per image, as in a run folder.
- `places.npy`: int64 (N, 3), for each line of split.csv the shard number, the first byte and the size of the image.
- `shards.json`: written last. `format` (1), `photos` (N), `classes`, and `[name, size in bytes, SHA-256]` of the other
  files: `split`, `places` and the list `shards` in the order of the shard numbers.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowers.data.remote import RemoteFile, RemoteFileCache, is_remote
from flowers.data.splits import ImageRecord, SplitRecord, load_split

MANIFEST_FILE, SHARD_SPLIT_FILE, INDEX_FILE = "shards.json", "split.csv", "places.npy"
SHARD_FORMAT = 1


class ShardedImage:
    """An image in a shard, for `read_image`."""

    def __init__(self, shards: "ShardSource", position: Sequence[int]) -> None:
        self.shards, self.position = shards, position

    def content(self) -> bytes:
        """Return the bytes of the image file."""
        return self.shards.content(*self.position)


class ShardSource:
    """The images of a set of shards; `source / "rose/1.jpg"` is an image.

    Args:
        root: Folder, or http, https or s3 address.
        s3_endpoint: URL of an S3-compatible server; None for $AWS_ENDPOINT_URL, or else AWS.
        retry_timeout: Seconds after which a failing download is given up.
        cache_gb: Disk space for copies of remote shards, in GiB.

    Raises:
        ValueError: For an address of an unknown kind; on first use, if the shards do not exist or cannot be downloaded.
    """

    def __init__(self, root: str, s3_endpoint: str | None, retry_timeout: float, cache_gb: float) -> None:
        self.root = root
        self.cache = RemoteFileCache(root, s3_endpoint, retry_timeout, cache_gb) if is_remote(root) else None

    def __str__(self) -> str:
        return self.root

    def __truediv__(self, path: str) -> ShardedImage:
        return ShardedImage(self, self.index[self._lines[path]].tolist())

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The content of shards.json."""
        try:
            text = (
                self.cache.text(MANIFEST_FILE) if self.cache else (Path(self.root) / MANIFEST_FILE).read_text("utf-8")
            )
            manifest = json.loads(text)
            if manifest["format"] != SHARD_FORMAT:
                raise ValueError(
                    f"{self.root} has shards of format {manifest['format']}: expected format {SHARD_FORMAT}; "
                    "pack the images again"
                )
            return dict(manifest)
        except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"no shards at {self.root} (no complete {MANIFEST_FILE}): python -m flowers.pack writes them"
            ) from error

    @cached_property
    def records(self) -> list[SplitRecord]:
        """The images with their split: the lines of split.csv."""
        return load_split(self._path(RemoteFile(*self.manifest["split"])))

    @property
    def images(self) -> list[ImageRecord]:
        """All images: they were checked when they were packed."""
        return [ImageRecord(record.path, record.label, record.sha256, "") for record in self.records]

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """The shard number, first byte and size of each line of split.csv, (N, 3)."""
        index: NDArray[np.int64] = np.load(self._path(RemoteFile(*self.manifest["places"])))
        return index

    @cached_property
    def shards(self) -> list[RemoteFile]:
        """The shards in the order of their numbers."""
        return [RemoteFile(*shard) for shard in self.manifest["shards"]]

    def sort_by_shard(self, records: Sequence[SplitRecord]) -> list[SplitRecord]:
        """Return `records` in the order of the images in the shards."""
        return sorted(records, key=lambda record: self.index[self._lines[record.path]].tolist())

    def shard_numbers(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """Return the shard number of each image, (N,)."""
        return self.index[[self._lines[path] for path in paths], 0]

    def content(self, shard: int, start: int, size: int) -> bytes:
        """Return `size` bytes of shard number `shard`, from byte `start` on."""
        while True:
            try:
                with self._path(self.shards[shard]).open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except FileNotFoundError:
                if self.cache is None:
                    raise
                # Another process has evicted the copy in the meantime: download it again.

    def check_cache_size(self, count: int) -> None:
        """Raise ValueError if `count` shards of the largest size do not fit into the cache."""
        needed = count * max(shard.size for shard in self.shards)
        if self.cache and needed > self.cache.max_bytes:
            raise ValueError(
                f"data.cache_gb={self.cache.max_bytes / 2**30:g}: expected at least {needed / 2**30:.2g} for the "
                f"{count} shards in use at a time; a smaller data.shuffle_shards needs less"
            )

    def prefetch(self, shard: int) -> None:
        """Start the download of a remote shard that is needed soon."""
        if self.cache is not None:
            self.cache.prefetch(self.shards[shard])

    def _path(self, file: RemoteFile) -> Path:
        return self.cache.path(file) if self.cache else Path(self.root) / file.name

    @cached_property
    def _lines(self) -> dict[str, int]:
        return {record.path: line for line, record in enumerate(self.records)}
