"""Features on disk, keyed by the contents of the image and by all settings that the features depend on.

The cache saves time, no more: where it cannot be read or written, the features are computed.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from flowers.runtime.files import (
    atomic_write,
    cache_dir,
    cache_lock,
    chunk_by_time,
    evict_least_recently_used,
    optional_cache,
    remove_stale_parts,
)
from flowers.runtime.text import one_line

log = logging.getLogger(__name__)

IndexedFeatures = tuple[list[int], Tensor]  # indices of B images, and their features (B, F)


class FeatureCache:
    """The features of one cache key, in files below the cache folder. Several processes may use it at once.

    The name of a file is the SHA-256 of its content, which is checked on reading.

    Args:
        key: All settings that the features depend on: weights, transform, precision, versions.
        width: The number F of features of an image.
        cache_gb: How many gibibytes the features of all keys may take. The least recently used files are deleted first.
    """

    def __init__(self, key: Mapping[str, str], width: int, cache_gb: float) -> None:
        self.key, self.width, self.max_bytes = dict(key), width, int(cache_gb * 2**30)
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = cache_dir() / "features" / name

    def fetch(
        self,
        digests: Sequence[str],
        compute: Callable[[list[int]], Iterator[IndexedFeatures]],
        while_waiting: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Return the features (N, F) of images; compute and store those that are not in the cache.

        Args:
            digests: The SHA-256 of the contents of N images, in hexadecimal.
            compute: Yields the features of the images at the given indices (below N, possibly none), in batches and in
                any order.
            while_waiting: Is called at least once a second while another process computes features of this key.
        """
        waiting = "another process computes these features: waiting for it"
        with cache_lock(self.folder / ".lock", waiting, while_waiting):
            cached = self._load()
            first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
            missing = sorted(index for digest, index in first.items() if digest not in cached)
            is_writable = True
            for indices, features in map(concat_batches, chunk_by_time(compute(missing))):
                new = [digests[index] for index in indices]
                cached |= dict(zip(new, features, strict=True))
                if is_writable:
                    is_writable = False
                    with optional_cache(self.folder):
                        self._store(new, features)
                        is_writable = True
            if missing and is_writable:
                self._clean()
        return torch.stack([cached[digest] for digest in digests])

    def _load(self) -> dict[str, Tensor]:
        """Return the features (F,) by SHA-256. Delete files that are damaged."""
        cached: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                cached |= self._read(path)
            except FileNotFoundError:  # another process has evicted it
                continue
            except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                log.warning("cannot use cached features, computing them again: %s (%s)", path, one_line(reason))
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                continue
            with suppress(OSError):  # a cache that only others can write
                os.utime(path)  # eviction goes by this time
        return cached

    def _read(self, path: Path) -> dict[str, Tensor]:
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")  # a FIFO would be waited for
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            raise ValueError("damaged")
        tensors = safetensors.torch.load(content)
        digests, features = [bytes(row).hex() for row in tensors["sha256"].numpy()], tensors["features"]
        if features.shape != (len(digests), self.width):
            raise ValueError(f"the shape is {tuple(features.shape)}, expected {(len(digests), self.width)}")
        if not features.abs().amax().isfinite():  # four times as fast as isfinite().all()
            raise ValueError("some features are not numbers")
        return dict(zip(digests, features, strict=True))

    def _store(self, digests: Sequence[str], features: Tensor) -> None:
        finite = features.abs().amax(1).isfinite()
        if not finite.any():
            return
        keys = torch.frombuffer(bytearray.fromhex("".join(digests)), dtype=torch.uint8).view(-1, 32)
        content = safetensors.torch.save({"sha256": keys[finite], "features": features[finite]}, self.key)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with atomic_write(path, len(content), durable=False) as temporary:
            temporary.write_bytes(content)

    def _clean(self) -> None:
        """Delete what killed processes left behind, and what is too much."""
        for folder in self.folder.parent.glob("*"):
            remove_stale_parts(folder)
        files = (path for path in self.folder.parent.glob("*/*.safetensors") if path.is_file())
        with optional_cache(self.folder.parent):
            evict_least_recently_used(files, self.max_bytes)


def concat_batches(batches: Iterable[IndexedFeatures]) -> IndexedFeatures:
    """Concatenate batches of indexed features into one."""
    indices, features = zip(*batches, strict=True)
    return list(chain.from_iterable(indices)), torch.cat(features)
