"""Read images from shards, whose files `flowers.data.sources.shard_format` describes.

The files may come from strangers. shards.json is checked as a whole before anything else is read; split.csv and
places.npy are those that it names, and each image is the one that split.csv names.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowers.data.images import MAX_FILE_BYTES, MAX_PIXELS, ImageFileError
from flowers.data.remote import RemoteFile, RemoteFileCache, RemoteFileError, file_sha256, is_remote
from flowers.data.samplers import EpochSampler, PrefetchingSampler, SampleKeys, ShardShuffleBatchSampler
from flowers.data.sources.shard_format import MANIFEST_FILE, SHARD_SPLIT_FILE, Manifest, parse_manifest
from flowers.data.splits import ImageRecord, SplitRecord, load_split
from flowers.runtime.distributed import rank_and_world_size
from flowers.runtime.files import read_bounded
from flowers.runtime.text import one_line

MAX_MANIFEST_BYTES = 64 * 2**20  # half a million shards

_MAX_DOWNLOADS = 5  # of a shard that another process removes each time


class ShardedImage:
    """An image in a shard, for `read_image`."""

    def __init__(self, shards: "ShardSource", line: int) -> None:
        self.shards, self.line = shards, line

    def content(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            ImageFileError: They cannot be read, or are not those of split.csv.
        """
        return self.shards.content(self.line)


class ShardSource:
    """The images of a set of shards; `source / "rose/1.jpg"` is an image.

    Args:
        root: Folder, or http, https or s3 address.
        s3_endpoint: URL of an S3-compatible server; None for $AWS_ENDPOINT_URL, or else AWS.
        retry_timeout: Seconds after which a failing download is given up.
        cache_gb: Disk space for copies of remote shards, in GiB.
        shuffle_shards: Number of shards that are read at the same time, so that their training images mix.
        max_pixels: Images with more pixels cannot be read.

    Raises:
        ValueError: For an address of an unknown kind; on first use, if the shards do not exist, cannot be downloaded
            or are damaged.
    """

    is_sequential = True

    def __init__(
        self,
        root: str,
        s3_endpoint: str | None,
        retry_timeout: float,
        cache_gb: float,
        shuffle_shards: int = 16,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root, self.shuffle_shards, self.max_pixels = root, shuffle_shards, max_pixels
        self.cache = RemoteFileCache(root, s3_endpoint, retry_timeout, cache_gb) if is_remote(root) else None

    def __str__(self) -> str:
        return self.root

    def __truediv__(self, path: str) -> ShardedImage:
        return ShardedImage(self, self._lines[path])

    def __getstate__(self) -> dict[str, Any]:
        # For spawned workers, which make it again in less time than it takes to send it.
        return {name: value for name, value in self.__dict__.items() if name != "_lines"}

    @cached_property
    def manifest(self) -> Manifest:
        """The content of shards.json."""
        try:
            return parse_manifest(self._manifest_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"no shards at {self.root} (no complete {MANIFEST_FILE}): python -m flowers.pack writes them"
            ) from error
        except ImageFileError:
            raise
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else one_line(error)
            raise ValueError(f"{self.root}/{MANIFEST_FILE} describes no shards: {reason}") from error

    @cached_property
    def records(self) -> list[SplitRecord]:
        """The images with their split: the lines of split.csv."""
        records = load_split(self._verified_path(self.manifest.split))
        if len(records) != self.manifest.photos or {record.label for record in records} != {*self.manifest.classes}:
            raise ValueError(f"{self.root}: {SHARD_SPLIT_FILE} has other images or classes than {MANIFEST_FILE}")
        return records

    @property
    def images(self) -> list[ImageRecord]:
        """All images: they were checked and split when they were packed."""
        return [ImageRecord(r.path, r.label, r.sha256, "", r.split, r.group) for r in self.records]

    @property
    def paths(self) -> list[str]:
        """The paths of all images."""
        return [record.path for record in self.records]

    @property
    def gray_peaks(self) -> list[int]:
        """That of all images together, as it was measured when they were packed."""
        return [self.manifest.gray_peak] if self.manifest.gray_peak else []

    @property
    def classes(self) -> list[str]:
        """The classes of shards.json."""
        return self.manifest.classes

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """The shard number, first byte and size of each line of split.csv, (N, 3)."""
        path = self._verified_path(self.manifest.places)
        wrong = f"{self.root}/{self.manifest.places.name} is no index of {self.manifest.photos:,} images"
        try:
            # Mapped: a wrong header must not decide how much memory is allocated.
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # on a damaged header, NumPy raises anything from EOFError to TokenError
            raise ValueError(f"{wrong}: {one_line(error)}") from error
        if not isinstance(mapped, np.ndarray) or (mapped.shape, mapped.dtype) != ((self.manifest.photos, 3), np.int64):
            raise ValueError(wrong)
        index = np.array(mapped, order="C")
        shard, start, size = index.T
        if index.min() < 0 or shard.max() >= len(self.shards) or size.max() > MAX_FILE_BYTES:
            raise ValueError(f"{wrong}: a shard number or a size is out of range")
        if (start > np.array([file.size for file in self.shards])[shard] - size).any():
            raise ValueError(f"{wrong}: an image ends after its shard")
        return index

    @property
    def shards(self) -> list[RemoteFile]:
        """The shards in the order of their numbers."""
        return self.manifest.shards

    def sort(self, records: list[SplitRecord]) -> list[SplitRecord]:
        """Return `records` in the order of the images in the shards."""
        return sorted(records, key=lambda record: self.index[self._lines[record.path]].tolist())

    def training_batches(self, paths: Sequence[str], order: EpochSampler, batch_size: int) -> ShardShuffleBatchSampler:
        """Return batches of few shards at a time, in an order of their own from the seed of `order`."""
        self.check_cache_size(
            (self.shuffle_shards + 2) * order.world_size, "; a smaller data.shuffle_shards needs less"
        )
        return ShardShuffleBatchSampler(
            self.shard_numbers(paths),
            batch_size,
            order.seed,
            order.rank,
            order.world_size,
            self.shuffle_shards,
            self.prefetch,
        )

    def reading_order(self, paths: Sequence[str], keys: SampleKeys | None) -> PrefetchingSampler:
        """Return the keys with the downloads of the shards that they need."""
        # Each process reads one shard, ends another, and prefetches a third.
        self.check_cache_size(3 * rank_and_world_size()[1])
        return PrefetchingSampler(range(len(paths)) if keys is None else keys, self.shard_numbers(paths), self.prefetch)

    def shard_numbers(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """Return the shard number of each image, (N,)."""
        return self.index[[self._lines[path] for path in paths], 0]

    def content(self, line: int) -> bytes:
        """Return the bytes of the image of a line of split.csv.

        Raises:
            ImageFileError: They cannot be read, or have another SHA-256 than in split.csv.
        """
        record, (shard, start, size) = self.records[line], self.index[line].tolist()
        file = self.shards[shard]
        content = self._read(file, start, size)
        is_unchanged = hashlib.sha256(content).hexdigest() == record.sha256
        if not is_unchanged and self.cache and self.cache.drop_if_damaged(file):
            content = self._read(file, start, size)
            is_unchanged = hashlib.sha256(content).hexdigest() == record.sha256
        if not is_unchanged:
            raise ImageFileError(
                f"{one_line(record.path)} in {self.root}/{file.name} is not the image of {SHARD_SPLIT_FILE}: "
                "copy or pack the shards again"
            )
        return content

    def check_cache_size(self, count: int, advice: str = "") -> None:
        """Raise ValueError with `advice` if `count` shards of the largest size do not fit into the cache."""
        count = min(count, len(self.shards))
        needed = count * max(shard.size for shard in self.shards)
        if self.cache and needed > self.cache.max_bytes:
            raise ValueError(
                f"data.cache_gb={self.cache.max_bytes / 2**30:g}: expected at least {needed / 2**30:.2g} for the "
                f"{count} shards in use at a time{advice}"
            )

    def prefetch(self, shard: int) -> None:
        """Start the download of a remote shard that is needed soon."""
        if self.cache is not None:
            self.cache.prefetch(self.shards[shard])

    def _manifest_text(self) -> str:
        if self.cache:
            return self.cache.text(MANIFEST_FILE, MAX_MANIFEST_BYTES)
        path = Path(self.root) / MANIFEST_FILE
        return read_bounded(path, MAX_MANIFEST_BYTES).decode("utf-8")

    def _verified_path(self, file: RemoteFile) -> Path:
        """Return the path of a small file, whose content is the one of the manifest."""
        path = self._path(file)
        if self.cache and self.cache.drop_if_damaged(file):
            path = self._path(file)
        if not self.cache and (path.stat().st_size != file.size or file_sha256(path) != file.sha256):
            raise ImageFileError(f"{self.root}/{file.name} is not the file of {MANIFEST_FILE}: copy the shards again")
        return path

    def _path(self, file: RemoteFile) -> Path:
        if self.cache:
            return self.cache.path(file)
        path = Path(self.root) / file.name
        if not path.is_file():
            raise ImageFileError(f"{self.root}/{file.name} is missing, or not a regular file: copy the shards again")
        return path

    def _read(self, file: RemoteFile, start: int, size: int) -> bytes:
        for _ in range(_MAX_DOWNLOADS):
            try:
                with self._path(file).open("rb") as stream:
                    stream.seek(start)
                    return stream.read(size)
            except FileNotFoundError:  # another process has evicted the copy in the meantime: download it again
                continue
            except OSError as error:
                raise ImageFileError(f"{self.root}/{file.name} cannot be read ({error.strerror})") from error
        raise RemoteFileError(
            f"other processes have removed the copy of {self.root}/{file.name} {_MAX_DOWNLOADS} times before it was "
            "read: set a larger data.cache_gb for all of them"
        )

    @cached_property
    def _lines(self) -> dict[str, int]:
        return {record.path: line for line, record in enumerate(self.records)}
