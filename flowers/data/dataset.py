"""Datasets of images, and the cache of decoded images in shared memory."""

import logging
import mmap
import multiprocessing
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from flowers.data.images import ImageRoot, read_image
from flowers.runtime.hardware import available_memory
from flowers.runtime.seeding import PADDING_INDEX, seeded

log = logging.getLogger(__name__)


_CACHES: dict[
    Hashable, "DecodedImageCache"
] = {}  # of this process: a multirun's next job finds what the last one decoded


class DecodedImageCache:
    """Room for `count` photos, uint8 (3, H, W), up to `size` bytes in all; those past it are not kept.

    The memory is mapped, not allocated: forked workers write into the same pages, a page costs nothing before it is
    written, and the size of /dev/shm does not matter.
    """

    def __init__(self, count: int, size: int) -> None:
        self._pixels = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        # Of each photo: where it starts, its height and width; a width of 0 means that it is not there (yet).
        self._table = torch.frombuffer(mmap.mmap(-1, 8 * 3 * count + 8), dtype=torch.int64)
        self._lock = multiprocessing.get_context("fork").Lock()

    def get(self, index: int) -> Tensor | None:
        """Photo number `index`, to be read only; None where it is not kept."""
        start, height, width = self._table[1 + 3 * index : 4 + 3 * index].tolist()
        if not width:
            return None
        return self._pixels[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def put(self, index: int, photo: Tensor) -> None:
        """Keeps a photo where there is room."""
        count = photo.numel()
        if not self._lock.acquire(timeout=1):  # a worker was killed just here
            return
        try:
            start = int(self._table[0])
            if start + count > len(self._pixels):
                return
            self._table[0] = start + count
        finally:
            self._lock.release()
        self._pixels[start : start + count] = photo.permute(1, 2, 0).flatten()
        row = self._table[1 + 3 * index : 4 + 3 * index]
        row[0], row[1] = start, photo.shape[1]
        row[2] = photo.shape[2]  # the last: only now is the photo there


def decoded_image_cache(key: Hashable, name: str, count: int, share: float) -> DecodedImageCache | None:
    """Room for decoded photos, at most `share` of the memory that is free; that of `key` where there is one already.

    None where photos are to be read from disk each time: with a share of 0, or where what is free is not known.
    """
    if key not in _CACHES:
        while len(_CACHES) >= 2:  # train's and val's
            del _CACHES[next(iter(_CACHES))]
        free = available_memory()
        size = int(share * free)
        if not size or "fork" not in multiprocessing.get_all_start_methods():
            log.info("photos of %s: read from disk in each epoch", name)
            return None
        log.info(
            "photos of %s: decoded once and kept in memory, up to %.1f of the %.1f GiB free",
            name,
            size / 2**30,
            free / 2**30,
        )
        _CACHES[key] = DecodedImageCache(count, size)
    return _CACHES[key]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Photos uint8 (3, H, W) and labels: item i, or item `(i, seed)` with that seed for its augmentation.

    Item FILLING is any photo, labelled FILLING.

    Args:
        root: where the photos lie.
        paths, labels, digests: of each photo; the paths below the root, the digests the files' SHA-256, hexadecimal.
        prepare: from the photo as it is decoded to what is kept.
        augment: what is drawn anew on top each time; None for nothing.
        store: keeps prepared photos; None to read them from disk each time.
    """

    def __init__(
        self,
        root: ImageRoot,
        paths: Sequence[str],
        labels: Sequence[int],
        digests: Sequence[str],
        prepare: Callable[[Tensor], Tensor],
        augment: Callable[[Tensor], Tensor] | None = None,
        store: DecodedImageCache | None = None,
    ) -> None:
        self.root, self.paths, self.labels, self.digests = root, paths, labels, digests
        self.prepare, self.augment, self.store = prepare, augment, store

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are not forked get a copy without the store: they cannot share it.
        return self.__dict__ | {"store": None}

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        photo = self._prepared(max(index, 0))
        if self.augment is not None:
            with seeded(seed):
                photo = self.augment(photo)
        return photo.contiguous(), PADDING_INDEX if index == PADDING_INDEX else self.labels[index]

    def _prepared(self, index: int) -> Tensor:
        kept = self.store.get(index) if self.store else None
        if kept is not None:
            return kept
        photo = self.prepare(v2.functional.pil_to_tensor(read_image(self.root / self.paths[index])))
        if self.store:
            self.store.put(index, photo)
        return photo
