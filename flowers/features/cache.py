"""Features on disk, keyed by the contents of the image and by all settings that the features depend on."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowers.runtime.files import atomic_write, cache_dir, chunk_by_time, evict_least_recently_used

log = logging.getLogger(__name__)

IndexedFeatures = tuple[list[int], Tensor]  # indices of B images, and their features (B, F)


class FeatureCache:
    """The features of one cache key, in files below the cache folder. Several processes may use it at once.

    Args:
        key: All settings that the features depend on: weights, transform, precision, versions.
        cache_gb: How many gibibytes the features of all keys may take. The least recently used files are deleted first.
    """

    def __init__(self, key: Mapping[str, str], cache_gb: float) -> None:
        self.key, self.max_bytes = dict(key), int(cache_gb * 2**30)
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = cache_dir() / "features" / name

    def fetch(self, digests: Sequence[str], compute: Callable[[list[int]], Iterator[IndexedFeatures]]) -> Tensor:
        """Return the features (N, F) of images; compute and store those that are not in the cache.

        Args:
            digests: The SHA-256 of the contents of N images, in hexadecimal.
            compute: Yields the features of the images at the given indices (below N, possibly none), in batches and in
                any order.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(FileLock(self.folder / ".lock")):
            cached = self._load()
            first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
            missing = sorted(index for digest, index in first.items() if digest not in cached)
            for indices, features in map(concat_batches, chunk_by_time(compute(missing))):
                new = [digests[index] for index in indices]
                self._store(new, features)
                cached |= dict(zip(new, features, strict=True))
            if missing:
                evict_least_recently_used(self.folder.parent.glob("*/*.safetensors"), self.max_bytes)
        return torch.stack([cached[digest] for digest in digests])

    def _load(self) -> dict[str, Tensor]:
        """Return the features (F,) by SHA-256. Delete files that cannot be read."""
        cached: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    digests = [bytes(row).hex() for row in file.get_tensor("sha256").numpy()]
                    cached |= dict(zip(digests, file.get_tensor("features"), strict=True))
                os.utime(path)  # eviction goes by this time
            except (OSError, SafetensorError, KeyError, ValueError):
                log.warning("cannot read %s: its features are computed again", path)
                path.unlink(missing_ok=True)
        return cached

    def _store(self, digests: Sequence[str], features: Tensor) -> None:
        keys = torch.frombuffer(bytearray.fromhex("".join(digests)), dtype=torch.uint8).view(-1, 32)
        with atomic_write(self.folder / f"{uuid.uuid4().hex}.safetensors") as temporary:
            save_file({"sha256": keys, "features": features.contiguous()}, temporary, metadata=self.key)


@contextmanager
def _locked(lock: FileLock) -> Iterator[None]:
    """Hold the lock. Log a line if another process holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process computes these features: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def concat_batches(batches: Iterable[IndexedFeatures]) -> IndexedFeatures:
    """Concatenate batches of indexed features into one."""
    indices, features = zip(*batches, strict=True)
    return list(chain.from_iterable(indices)), torch.cat(features)
