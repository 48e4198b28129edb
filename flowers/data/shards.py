"""Read images from shards that `flowers.pack` wrote."""

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
    """A photo in a shard; it stands where else a path does."""

    def __init__(self, shards: "ShardSource", place: Sequence[int]) -> None:
        self.shards, self.place = shards, place

    def content(self) -> bytes:
        """The photo's bytes, as its file had them."""
        return self.shards.content(*self.place)


class ShardSource:
    """A set of packed photos; it stands where else the folder's path does: `shards / "rose/1.jpg"`.

    Args:
        root: a path, or an address; see `remote.fetch`.
        s3_endpoint, retry_timeout: see `remote.fetch`.
        cache_gb: gibibytes of copies of remote shards on this disk.

    Raises ValueError where there are none, or where they cannot be had.
    """

    def __init__(self, root: str, s3_endpoint: str | None, retry_timeout: float, cache_gb: float) -> None:
        self.root = root
        self.mirror = RemoteFileCache(root, s3_endpoint, retry_timeout, cache_gb) if is_remote(root) else None

    def __str__(self) -> str:
        return self.root

    def __truediv__(self, path: str) -> ShardedImage:
        return ShardedImage(self, self.index[self._lines[path]].tolist())

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What shards.json says."""
        try:
            text = (
                self.mirror.text(MANIFEST_FILE) if self.mirror else (Path(self.root) / MANIFEST_FILE).read_text("utf-8")
            )
            manifest = json.loads(text)
            if manifest["format"] != SHARD_FORMAT:
                raise ValueError(f"{self.root} has shards of format {manifest['format']}: wanted {SHARD_FORMAT}")
            return dict(manifest)
        except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"no shards at {self.root} (no whole {MANIFEST_FILE}): python -m flowers.pack makes some of a folder"
            ) from error

    @cached_property
    def rows(self) -> list[SplitRecord]:
        """The lines of split.csv."""
        return load_split(self._file(RemoteFile(*self.manifest["split"])))

    @property
    def photos(self) -> list[ImageRecord]:
        """Of the same: all were read when they were packed."""
        return [ImageRecord(row.path, row.label, row.sha256, "") for row in self.rows]

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """Of each line, the number of the shard and the photo's first byte and size there: (N, 3)."""
        places: NDArray[np.int64] = np.load(self._file(RemoteFile(*self.manifest["places"])))
        return places

    @cached_property
    def names(self) -> list[RemoteFile]:
        """The shards, in the order of their numbers."""
        return [RemoteFile(*shard) for shard in self.manifest["shards"]]

    def sort_by_shard(self, rows: Sequence[SplitRecord]) -> list[SplitRecord]:
        """`rows` in the order in which they lie in the shards."""
        return sorted(rows, key=lambda row: self.index[self._lines[row.path]].tolist())

    def numbers(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """The number of the shard of each photo."""
        return self.index[[self._lines[path] for path in paths], 0]

    def content(self, shard: int, start: int, size: int) -> bytes:
        """So many bytes of a shard."""
        while True:
            try:
                with self._file(self.names[shard]).open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except FileNotFoundError:
                if self.mirror is None:
                    raise  # else another process has made room just now

    def check_room(self, count: int) -> None:
        """Raises ValueError where so many shards of the largest size do not fit into the cache."""
        needed = count * max(shard.size for shard in self.names)
        if self.mirror and needed > self.mirror.max_bytes:
            raise ValueError(
                f"data.cache_gb={self.mirror.max_bytes / 2**30:g}: wanted at least {needed / 2**30:.2g} for the "
                f"{count} shards in use at a time (data.shuffle_shards=… for fewer)"
            )

    def prefetch(self, shard: int) -> None:
        """Has a shard fetched that will be needed soon."""
        if self.mirror is not None:
            self.mirror.prefetch(self.names[shard])

    def _file(self, file: RemoteFile) -> Path:
        return self.mirror.path(file) if self.mirror else Path(self.root) / file.name

    @cached_property
    def _lines(self) -> dict[str, int]:
        return {row.path: line for line, row in enumerate(self.rows)}
