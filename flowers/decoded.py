"""Decoded photos in memory that worker processes share: each is decoded once, by whoever needs it first."""

import logging
import mmap
import multiprocessing
from collections.abc import Hashable
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_STORES: dict[Hashable, "Decoded"] = {}  # of this process: a multirun's next job finds what the last one decoded


class Decoded:
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


def store(key: Hashable, name: str, count: int, share: float) -> Decoded | None:
    """Room for decoded photos, at most `share` of the memory that is free; that of `key` where there is one already.

    None where photos are to be read from disk each time: with a share of 0, or where what is free is not known.
    """
    if key not in _STORES:
        while len(_STORES) >= 2:  # train's and val's
            del _STORES[next(iter(_STORES))]
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
        _STORES[key] = Decoded(count, size)
    return _STORES[key]


def available_memory() -> int:
    """Bytes that processes here can still take without swapping, also within a container's limit; 0 where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
    return max(free, 0)
