"""Features on disk, found by the image's contents and by everything else they depend on."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowers.runtime.files import atomic_write, cache_dir, chunk_by_time

log = logging.getLogger(__name__)


IndexedFeatures = tuple[list[int], Tensor]


"""Places of photos, B of them, and their features (B, F)."""


class FeatureCache:
    """The features of one way to compute them, in files below the cache folder; safe with several processes.

    Args:
        recipe: all that features depend on but the photo: weights, transform, precision, versions.
        cache_gb: gibibytes that the features of all recipes may take; those used longest ago are dropped first.
    """

    def __init__(self, recipe: Mapping[str, str], cache_gb: float) -> None:
        self.recipe, self.max_bytes = dict(recipe), int(cache_gb * 2**30)
        name = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = cache_dir() / "features" / name

    def fetch(self, digests: Sequence[str], compute: Callable[[list[int]], Iterator[IndexedFeatures]]) -> Tensor:
        """The features (N, F) of photos whose contents have these SHA-256.

        Args:
            digests: N of them, hexadecimal.
            compute: gives the features of the photos at some or none of the N places, in batches, in any order.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(FileLock(self.folder / ".lock")):
            found = self._found()
            first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
            missing = sorted(index for digest, index in first.items() if digest not in found)
            for places, features in map(concat_batches, chunk_by_time(compute(missing))):
                new = [digests[place] for place in places]
                self._write(new, features)
                found |= dict(zip(new, features, strict=True))
            if missing:
                _evict(self.folder.parent, self.max_bytes)
        return torch.stack([found[digest] for digest in digests])

    def _found(self) -> dict[str, Tensor]:
        """What is kept: the feature (F,) of each photo's SHA-256. A file that cannot be read is as good as none."""
        found: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    digests = [bytes(row).hex() for row in file.get_tensor("sha256").numpy()]
                    found |= dict(zip(digests, file.get_tensor("features"), strict=True))
                os.utime(path)  # what is used is dropped last
            except (OSError, SafetensorError, KeyError, ValueError):
                log.warning("%s cannot be read: its features are computed again", path)
                path.unlink(missing_ok=True)
        return found

    def _write(self, digests: Sequence[str], features: Tensor) -> None:
        keys = torch.frombuffer(bytearray.fromhex("".join(digests)), dtype=torch.uint8).view(-1, 32)
        with atomic_write(self.folder / f"{uuid.uuid4().hex}.safetensors") as beside:
            save_file({"sha256": keys, "features": features.contiguous()}, beside, metadata=self.recipe)


@contextmanager
def _locked(lock: FileLock) -> Iterator[None]:
    """Holds the lock, and says so where another process makes it wait."""
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
    """Batches of features as one."""
    places, features = zip(*batches, strict=True)
    return list(chain.from_iterable(places)), torch.cat(features)


def _evict(root: Path, max_bytes: int) -> None:
    """Drops the files used longest ago until the rest fits."""
    files = []
    for path in root.glob("*/*.safetensors"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process was faster
            continue
        files.append((status.st_mtime_ns, status.st_size, path))
    surplus = sum(size for _, size, _ in files) - max_bytes
    for _, size, path in sorted(files):
        if surplus <= 0:
            return
        path.unlink(missing_ok=True)
        surplus -= size
