"""Photos in shards that `flowers.pack` wrote, on this disk or far away.

A shard is a tar file in the format of WebDataset: members `000000012.jpg` and `000000012.cls` are a photo's own bytes
and the number of its class. Beside the shards lie split.csv, places.npy, which says where in which shard the photo of
each of its lines lies, and shards.json, written last, which names them all.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowers import remote, split
from flowers.mirror import Mirror, Remote

MANIFEST, SPLIT, PLACES = "shards.json", "split.csv", "places.npy"
FORMAT = 1


class PackedPhoto:
    """A photo in a shard; it stands where else a path does."""

    def __init__(self, shards: "Shards", place: Sequence[int]) -> None:
        self.shards, self.place = shards, place

    def content(self) -> bytes:
        """The photo's bytes, as its file had them."""
        return self.shards.content(*self.place)


class Shards:
    """A set of packed photos; it stands where else the folder's path does: `shards / "rose/1.jpg"`.

    Args:
        root: a path, or an address; see `remote.fetch`.
        endpoint, patience: see `remote.fetch`.
        cache_gb: gibibytes of copies of remote shards on this disk.

    Raises ValueError where there are none, or where they cannot be had.
    """

    def __init__(self, root: str, endpoint: str | None, patience: float, cache_gb: float) -> None:
        self.root = root
        self.mirror = Mirror(root, endpoint, patience, cache_gb) if remote.is_remote(root) else None

    def __str__(self) -> str:
        return self.root

    def __truediv__(self, path: str) -> PackedPhoto:
        return PackedPhoto(self, self.places[self._lines[path]].tolist())

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What shards.json says."""
        try:
            text = self.mirror.text(MANIFEST) if self.mirror else (Path(self.root) / MANIFEST).read_text("utf-8")
            manifest = json.loads(text)
            if manifest["format"] != FORMAT:
                raise ValueError(f"{self.root} has shards of format {manifest['format']}: wanted {FORMAT}")
            return dict(manifest)
        except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"no shards at {self.root} (no whole {MANIFEST}): python -m flowers.pack makes some of a folder"
            ) from error

    @cached_property
    def rows(self) -> list[split.Row]:
        """The lines of split.csv."""
        return split.load(self._file(Remote(*self.manifest["split"])))

    @property
    def photos(self) -> list[split.Photo]:
        """Of the same: all were read when they were packed."""
        return [split.Photo(row.path, row.label, row.sha256, "") for row in self.rows]

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Of each line, the number of the shard and the photo's first byte and size there: (N, 3)."""
        places: NDArray[np.int64] = np.load(self._file(Remote(*self.manifest["places"])))
        return places

    @cached_property
    def names(self) -> list[Remote]:
        """The shards, in the order of their numbers."""
        return [Remote(*shard) for shard in self.manifest["shards"]]

    def stored(self, rows: Sequence[split.Row]) -> list[split.Row]:
        """`rows` in the order in which they lie in the shards."""
        return sorted(rows, key=lambda row: self.places[self._lines[row.path]].tolist())

    def numbers(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """The number of the shard of each photo."""
        return self.places[[self._lines[path] for path in paths], 0]

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
                f"{count} shards in use at a time (data.mixed_shards=… for fewer)"
            )

    def ahead(self, shard: int) -> None:
        """Has a shard fetched that will be needed soon."""
        if self.mirror is not None:
            self.mirror.ahead(self.names[shard])

    def _file(self, file: Remote) -> Path:
        return self.mirror.path(file) if self.mirror else Path(self.root) / file.name

    @cached_property
    def _lines(self) -> dict[str, int]:
        return {row.path: line for line, row in enumerate(self.rows)}
