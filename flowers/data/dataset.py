"""Image datasets, and the cache of decoded images in shared memory."""

import io
import logging
import mmap
import multiprocessing
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from flowers.data.images import (
    ImageBytes,
    ImageFileError,
    ImageMemoryError,
    ImageRoot,
    named_memory_error,
    pixel_limit,
    read_error_reason,
    read_image,
    read_unchanged,
)
from flowers.data.pixels import GrayBits
from flowers.runtime.hardware import available_memory
from flowers.runtime.seeding import PADDING_INDEX, seeded
from flowers.runtime.text import one_line

log = logging.getLogger(__name__)

# Per process, so that the next job of a multirun finds the images that the last one decoded.
_CACHES: dict[Hashable, "DecodedImageCache"] = {}


def decoded_image_cache(key: Hashable, split: str, count: int, memory_fraction: float) -> "DecodedImageCache | None":
    """Return the cache of decoded images of `key`; create it at the first call.

    The process holds two caches, for train and val. A third key replaces the older one.

    Args:
        key: Identifies the images, their order and their preparation.
        split: Name of the split, for the log.
        count: Number of images.
        memory_fraction: Share of the free memory that the cache may take, from 0 to below 1.

    Returns:
        The cache. None if the images are to be read from disk in every epoch: with a share of 0, or if the free memory
        is unknown, or on a platform that cannot fork.
    """
    if memory_fraction and key in _CACHES:
        return _CACHES[key]
    while len(_CACHES) >= 2:
        del _CACHES[next(iter(_CACHES))]
    free = available_memory()
    size = int(memory_fraction * free)
    if not size or "fork" not in multiprocessing.get_all_start_methods():
        log.info("images of %s: read from disk in each epoch", split)
        return None
    log.info(
        "images of %s: decoded once and cached in memory, up to %.1f of the %.1f GiB free",
        split,
        size / 2**30,
        free / 2**30,
    )
    _CACHES[key] = DecodedImageCache(count, size)
    return _CACHES[key]


class DecodedImageCache:
    """A cache of decoded images, uint8 (3, H, W), in memory that forked dataloader workers share.

    Images that no longer fit are not cached. The memory is mapped, not allocated: workers write into the same pages, a
    page takes no memory before it is written, and the size of /dev/shm does not matter.

    Args:
        count: Number of images.
        size: Bytes for the pixels of all images.
    """

    def __init__(self, count: int, size: int) -> None:
        self._pixels = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        # The first item is the number of bytes in use. Then follow, for each image, its first byte, height and width;
        # a width of 0 means that the image is not cached.
        self._table = torch.frombuffer(mmap.mmap(-1, 8 * 3 * count + 8), dtype=torch.int64)
        self._lock = multiprocessing.get_context("fork").Lock()

    def get(self, index: int) -> Tensor | None:
        """Return image `index`, which the caller must not modify; None if it is not cached."""
        start, height, width = self._table[1 + 3 * index : 4 + 3 * index].tolist()
        if not width:
            return None
        return self._pixels[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def put(self, index: int, image: Tensor) -> None:
        """Cache an image if there is room."""
        count = image.numel()
        if int(self._table[0]) + count > len(self._pixels):
            return
        if not self._lock.acquire(timeout=1):  # a worker that held the lock was killed
            self._table[0] = len(self._pixels)  # full, for all workers: the next image does not wait again
            return
        try:
            start = int(self._table[0])
            if start + count > len(self._pixels):
                return
            self._table[0] = start + count
        finally:
            self._lock.release()
        self._pixels[start : start + count] = image.permute(1, 2, 0).flatten()
        entry = self._table[1 + 3 * index : 4 + 3 * index]
        entry[0], entry[1] = start, image.shape[1]
        entry[2] = image.shape[2]  # last: it marks the image as complete


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images uint8 (3, H, W) with their labels.

    The key of an item is an index, or `(index, seed)`: the augmentation then draws from that seed. The item of
    PADDING_INDEX is some image with the label PADDING_INDEX.

    Args:
        root: Where the images are.
        paths: Path of each image below `root`.
        labels: Class number of each image.
        digests: SHA-256 of each image file, hexadecimal, which is checked whenever the file is read.
        prepare: Applied to the decoded image; its result is cached.
        augment: Random transform, applied to the prepared image on each access; None for none.
        cache: Cache of the prepared images; None to read them from disk on each access.
        bit_depth: Of grayscale images of more than 8 bits; see `Preprocessing`.

    Raises:
        ImageFileError: On access, if an image was deleted or changed, or cannot be read.
    """

    def __init__(
        self,
        root: ImageRoot,
        paths: Sequence[str],
        labels: Sequence[int],
        digests: Sequence[str],
        prepare: Callable[[Tensor], Tensor],
        augment: Callable[[Tensor], Tensor] | None = None,
        cache: DecodedImageCache | None = None,
        bit_depth: GrayBits = None,
    ) -> None:
        self.root, self.paths, self.labels, self.digests = root, paths, labels, digests
        self.prepare, self.augment, self.cache, self.bit_depth = prepare, augment, cache, bit_depth

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, count: int) -> "ImageDataset":
        """Return at most `count` images without augmentation, the same ones each time, in this order."""
        indices = sorted(np.random.default_rng(0).permutation(len(self))[:count].tolist())
        paths, labels, digests = (
            [each[index] for index in indices] for each in (self.paths, self.labels, self.digests)
        )
        return ImageDataset(self.root, paths, labels, digests, self.prepare, bit_depth=self.bit_depth)

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers cannot share the cache. Forked ones do not pickle the dataset.
        return self.__dict__ | {"cache": None}

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        image = self._prepared_image(max(index, 0))
        if self.augment is not None:
            with seeded(seed):
                image = self.augment(image)
        return image.contiguous(), PADDING_INDEX if index == PADDING_INDEX else self.labels[index]

    def _prepared_image(self, index: int) -> Tensor:
        cached = self.cache.get(index) if self.cache else None
        if cached is not None:
            return cached
        with named_memory_error(self.paths[index]):
            image = self.prepare(v2.functional.pil_to_tensor(self._read(index)))
        if self.cache:
            self.cache.put(index, image)
        return image

    def _read(self, index: int) -> Image.Image:
        source, digest = self.root / self.paths[index], self.digests[index]
        content = source.content() if isinstance(source, ImageBytes) else read_unchanged(source, digest)
        try:
            return read_image(io.BytesIO(content), pixel_limit(self.root), is_checked=True, bit_depth=self.bit_depth)
        except ImageMemoryError:
            raise
        except Exception as error:  # shards that others have packed: their images were not checked here
            raise ImageFileError(f"{one_line(self.paths[index])}: {read_error_reason(error)}") from error
