"""Photos as a data set: read, prepared once, augmented anew each time."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from flowers import photos
from flowers.decoded import Decoded
from flowers.sampler import FILLING, seeded


class PhotoSet(Dataset[tuple[Tensor, int]]):
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
        root: photos.Root,
        paths: Sequence[str],
        labels: Sequence[int],
        digests: Sequence[str],
        prepare: Callable[[Tensor], Tensor],
        augment: Callable[[Tensor], Tensor] | None = None,
        store: Decoded | None = None,
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
        return photo.contiguous(), FILLING if index == FILLING else self.labels[index]

    def _prepared(self, index: int) -> Tensor:
        kept = self.store.get(index) if self.store else None
        if kept is not None:
            return kept
        photo = self.prepare(v2.functional.pil_to_tensor(photos.read(self.root / self.paths[index])))
        if self.store:
            self.store.put(index, photo)
        return photo
