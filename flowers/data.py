"""The photos as Lightning takes them, of a folder or of shards: transformed and batched."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader

from flowers import decoded, hardware, remote, sharing, transforms
from flowers.folder import Folder
from flowers.loader import EpochLoader
from flowers.order import InTurn, Keys, ShardOrder
from flowers.photoset import PhotoSet
from flowers.sampler import FILLING, EpochSampler
from flowers.shards import Shards
from flowers.split import Row, digest, load, matched


class FlowersData(LightningDataModule):
    """Batches of `(photos, labels)`: uint8 (B, 3, H, W) and int64 (B,), for training augmented, else centred.

    Args:
        root: the folder of photos, one sub-folder a class.
        source, on_bad_photo: see `Folder`.
        val_fraction, test_fraction, folds, fold, split_seed: see `split.decide`.
        split_file: a split.csv to take as given, its paths being below `root`.
        image_size, resize: pixels; see `transforms.centred`.
        crop_scale, crop_ratio, flip, brightness, contrast, saturation, hue: see `transforms.augmenting`.
        batch_size: photos a step, of all processes that train together.
        num_workers: processes that decode, for each one that trains; None for one a core, eight at most.
        memory_share: of the free memory, what decoded photos may take; 0 to read them from disk in each epoch.
        seed: of the order of training and the augmentations.
        packed: whether `root` holds shards, of `flowers.pack`; their split is inside. `root` may then be an address.
        endpoint, patience: see `remote.fetch`.
        cache_gb: gibibytes of copies of remote shards on this disk.
        mixed_shards: see `ShardOrder`.

    Raises ValueError, once asked for photos, for a folder, a photo or a split that cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        source: Callable[[Path], None] | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        folds: int = 0,
        fold: int = 0,
        split_seed: int = 0,
        split_file: str | Path | None = None,
        on_bad_photo: Literal["error", "skip"] = "error",
        image_size: int = 224,
        resize: int = 256,
        crop_scale: Sequence[float] = (0.5, 1.0),
        crop_ratio: Sequence[float] = (0.75, 1.333),
        flip: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        batch_size: int = 64,
        num_workers: int | None = None,
        memory_share: float = 0.5,
        seed: int = 0,
        packed: bool = False,
        endpoint: str | None = None,
        patience: float = 300.0,
        cache_gb: float = 20.0,
        mixed_shards: int = 16,
    ) -> None:
        super().__init__()
        if not 0 < image_size <= resize:
            raise ValueError(f"data.image_size={image_size} data.resize={resize}: wanted 0 < image_size <= resize")
        if not 0 <= memory_share < 1:
            raise ValueError(f"data.memory_share={memory_share}: wanted a share from 0 up to, but not, 1")
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size}: wanted at least 1")
        if mixed_shards < 1:
            raise ValueError(f"data.mixed_shards={mixed_shards}: wanted at least 1")
        if remote.is_remote(root) and not packed:
            raise ValueError(f"{root} is no folder: wanted data=shards for photos that flowers.pack has packed")
        rule = val_fraction, test_fraction, folds, fold, split_seed
        self.shards = Shards(str(root), endpoint, patience, cache_gb) if packed else None
        self.root = self.shards or Folder(root, source, on_bad_photo, rule)
        self.mixed_shards = mixed_shards
        self.split_file = split_file
        self.augment = transforms.augmenting(
            image_size, crop_scale, crop_ratio, flip, brightness, contrast, saturation, hue
        )
        self.shrink = transforms.Shrink(max(resize, transforms.useful_side(image_size, crop_scale, crop_ratio)))
        self.centre = transforms.centred(image_size, resize)
        self.batch_size = batch_size
        self.memory_share = memory_share
        self.num_workers = min(hardware.cores(), 8) if num_workers is None else num_workers
        self.seed = seed

    @cached_property
    def rows(self) -> list[Row]:
        """Every photo that takes part, with its split."""
        if self.split_file is not None:
            return matched(load(self.split_file), self.root.photos, self.split_file)
        return self.root.rows

    @cached_property
    def classes(self) -> list[str]:
        """The classes' names in the order of their numbers."""
        return sorted({row.label for row in self.rows})

    @cached_property
    def split_digest(self) -> str:
        """The SHA-256 of split.csv."""
        return digest(self.rows)

    def counts(self, split: str) -> Counter[str]:
        """Photos of each class in `split`."""
        return Counter(row.label for row in self.rows if row.split == split)

    def dataset(self, split: str, augmented: bool = False, kept: bool = False) -> PhotoSet:
        """The photos of `split`, centred or freshly augmented; `kept`: decoded once.

        They are in the order of split.csv, but those of train, where they are packed, in that of the shards.
        """
        rows = [row for row in self.rows if row.split == split]
        if self.shards is not None:
            rows = self.shards.stored(rows)
        if not rows:
            raise ValueError(
                f"no photo is in {split}: wanted a split that has some (data.test_fraction, data.split_file)"
            )
        labels = [self.classes.index(row.label) for row in rows]
        digests = [row.sha256 for row in rows]
        prepare, augment = (self.shrink, self.augment) if augmented else (self.centre, None)
        key = digest(rows), str(prepare)
        share = self.memory_share / 2 / sharing.rank()[1]  # train and val share it, and so do processes
        store = decoded.store(key, split, len(rows), share) if kept else None
        return PhotoSet(self.root, [row.path for row in rows], labels, digests, prepare, augment, store)

    def everything(self, classes: Sequence[str]) -> PhotoSet:
        """All photos that can be read, centred, whatever their split, labelled by their place in `classes`.

        Raises ValueError for a class that is not among them.
        """
        good = self.root.photos
        if unknown := {photo.label for photo in good} - set(classes):
            raise ValueError(
                f"{self.root} has the class(es) {', '.join(sorted(unknown))}: "
                f"wanted those of the model, {', '.join(classes)}"
            )
        labels = [list(classes).index(photo.label) for photo in good]
        digests = [photo.sha256 for photo in good]
        return PhotoSet(self.root, [photo.path for photo in good], labels, digests, self.centre)

    def train_dataloader(self) -> DataLoader[Any]:
        """The photos of train, augmented and shuffled."""
        dataset = self.dataset("train", augmented=True, kept=True)
        if self.shards is not None:
            return EpochLoader(dataset, self._shard_order(dataset), self._batches_done, **self._loading)
        order: Any = self.order(len(dataset))  # its keys are no plain numbers, which torch's types want
        batches = BatchSampler(order, self.step_share(sharing.rank()[1]), drop_last=False)
        return EpochLoader(dataset, batches, self._batches_done, **self._loading)

    def val_dataloader(self) -> DataLoader[Any]:
        """The photos of val, centred: this process's part, filled up so that all take as many batches."""
        dataset = self.dataset("val", kept=True)
        return self.batches(dataset, sharing.part(range(len(dataset)), FILLING), self.step_share(sharing.rank()[1]))

    def order(self, length: int) -> EpochSampler:
        """The order of training over `length` items: this process's share of it."""
        return EpochSampler(length, self.seed, *sharing.rank())

    def step_share(self, ranks: int) -> int:
        """Photos of a step that each of so many processes takes. Raises ValueError where it is no whole number."""
        if self.batch_size % ranks:
            raise ValueError(f"data.batch_size={self.batch_size}: wanted a multiple of the {ranks} processes")
        return self.batch_size // ranks

    def _shard_order(self, dataset: PhotoSet) -> ShardOrder:
        assert self.shards is not None
        rank, ranks = sharing.rank()
        numbers = self.shards.numbers(dataset.paths)
        self.shards.check_room(min((self.mixed_shards + 2) * ranks, len(self.shards.names)))
        return ShardOrder(numbers, self.step_share(ranks), self.seed, rank, ranks, self.mixed_shards, self.shards.ahead)

    def batches(self, dataset: PhotoSet, keys: Keys | None = None, batch_size: int | None = None) -> DataLoader[Any]:
        """Batches of `dataset`, decoded in parallel, in its own order or that of `keys`; of the data's own size."""
        order: Any = keys  # its keys are no plain numbers, which torch's types want
        if self.shards is not None:
            keys = range(len(dataset)) if keys is None else keys
            order = InTurn(keys, self.shards.numbers(dataset.paths), self.shards.ahead)
        return DataLoader(dataset, batch_size=batch_size or self.batch_size, sampler=order, **self._loading)

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # its own: what an epoch draws shall not depend on how it is loaded
        }

    def _batches_done(self) -> int:
        """How many training batches of the epoch lie behind: in a run that was killed inside of one, more than none."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0


def shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings for its data, those that another program needs to show a network the same photos."""
    names = ("image_size", "resize", "batch_size", "num_workers", "on_bad_photo")
    packed = ("packed", "endpoint", "patience", "cache_gb")
    return {name: settings[name] for name in (*names, *packed) if name in settings}
