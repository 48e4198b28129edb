"""The Lightning data module: batches of images and labels from a folder or from shards."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader

from flowers.data.dataset import ImageDataset, decoded_image_cache
from flowers.data.folder import ImageFolderSource
from flowers.data.remote import is_remote
from flowers.data.samplers import (
    EpochSampler,
    PrefetchingSampler,
    ResumableDataLoader,
    SampleKeys,
    ShardShuffleBatchSampler,
)
from flowers.data.shards import ShardSource
from flowers.data.splits import SplitRecord, check_split, load_split, split_sha256
from flowers.data.transforms import ResizeIfLarger, eval_transform, max_useful_side, train_transform
from flowers.runtime.distributed import local_slice, rank_and_world_size
from flowers.runtime.hardware import available_cores
from flowers.runtime.seeding import PADDING_INDEX


class ImageDataModule(LightningDataModule):
    """Batches of `(photos, labels)`: uint8 (B, 3, H, W) and int64 (B,), for training augmented, else centred.

    Args:
        root: the folder of photos, one sub-folder a class.
        source, on_corrupt: see `Folder`.
        val_fraction, test_fraction, folds, fold, split_seed: see `split.decide`.
        split_file: a split.csv to take as given, its paths being below `root`.
        image_size, resize: pixels; see `transforms.centred`.
        crop_scale, crop_ratio, hflip_prob, brightness, contrast, saturation, hue: see `transforms.augmenting`.
        batch_size: photos a step, of all processes that train together.
        num_workers: processes that decode, for each one that trains; None for one a core, eight at most.
        decoded_cache_fraction: share of the free memory for decoded images; 0 reads them from disk each epoch.
        seed: of the order of training and the augmentations.
        packed: whether `root` holds shards, of `flowers.pack`; their split is inside. `root` may then be an address.
        s3_endpoint, retry_timeout: see `remote.fetch`.
        cache_gb: gibibytes of copies of remote shards on this disk.
        shuffle_shards: see `ShardOrder`.

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
        on_corrupt: Literal["error", "skip"] = "error",
        image_size: int = 224,
        resize: int = 256,
        crop_scale: Sequence[float] = (0.5, 1.0),
        crop_ratio: Sequence[float] = (0.75, 1.333),
        hflip_prob: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        batch_size: int = 64,
        num_workers: int | None = None,
        decoded_cache_fraction: float = 0.5,
        seed: int = 0,
        packed: bool = False,
        s3_endpoint: str | None = None,
        retry_timeout: float = 300.0,
        cache_gb: float = 20.0,
        shuffle_shards: int = 16,
    ) -> None:
        super().__init__()
        if not 0 < image_size <= resize:
            raise ValueError(f"data.image_size={image_size} data.resize={resize}: wanted 0 < image_size <= resize")
        if not 0 <= decoded_cache_fraction < 1:
            raise ValueError(
                f"data.decoded_cache_fraction={decoded_cache_fraction}: expected a number from 0 to below 1"
            )
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size}: wanted at least 1")
        if shuffle_shards < 1:
            raise ValueError(f"data.shuffle_shards={shuffle_shards}: wanted at least 1")
        if is_remote(root) and not packed:
            raise ValueError(f"{root} is no folder: wanted data=shards for photos that flowers.pack has packed")
        rule = val_fraction, test_fraction, folds, fold, split_seed
        self.shards = ShardSource(str(root), s3_endpoint, retry_timeout, cache_gb) if packed else None
        self.root = self.shards or ImageFolderSource(root, source, on_corrupt, rule)
        self.shuffle_shards = shuffle_shards
        self.split_file = split_file
        self.train_transform = train_transform(
            image_size, crop_scale, crop_ratio, hflip_prob, brightness, contrast, saturation, hue
        )
        self.resize_if_larger = ResizeIfLarger(max(resize, max_useful_side(image_size, crop_scale, crop_ratio)))
        self.eval_transform = eval_transform(image_size, resize)
        self.batch_size = batch_size
        self.decoded_cache_fraction = decoded_cache_fraction
        self.num_workers = min(available_cores(), 8) if num_workers is None else num_workers
        self.seed = seed

    @cached_property
    def rows(self) -> list[SplitRecord]:
        """Every photo that takes part, with its split."""
        if self.split_file is not None:
            return check_split(load_split(self.split_file), self.root.photos, self.split_file)
        return self.root.rows

    @cached_property
    def classes(self) -> list[str]:
        """The classes' names in the order of their numbers."""
        return sorted({row.label for row in self.rows})

    @cached_property
    def split_digest(self) -> str:
        """The SHA-256 of split.csv."""
        return split_sha256(self.rows)

    def counts(self, split: str) -> Counter[str]:
        """Photos of each class in `split`."""
        return Counter(row.label for row in self.rows if row.split == split)

    def dataset(self, split: str, augmented: bool = False, kept: bool = False) -> ImageDataset:
        """The photos of `split`, centred or freshly augmented; `kept`: decoded once.

        They are in the order of split.csv, but those of train, where they are packed, in that of the shards.
        """
        rows = [row for row in self.rows if row.split == split]
        if self.shards is not None:
            rows = self.shards.sort_by_shard(rows)
        if not rows:
            raise ValueError(
                f"no photo is in {split}: wanted a split that has some (data.test_fraction, data.split_file)"
            )
        labels = [self.classes.index(row.label) for row in rows]
        digests = [row.sha256 for row in rows]
        prepare, augment = (self.resize_if_larger, self.train_transform) if augmented else (self.eval_transform, None)
        key = split_sha256(rows), str(prepare)
        share = self.decoded_cache_fraction / 2 / rank_and_world_size()[1]  # shared by train and val, and by processes
        store = decoded_image_cache(key, split, len(rows), share) if kept else None
        return ImageDataset(self.root, [row.path for row in rows], labels, digests, prepare, augment, store)

    def full_dataset(self, classes: Sequence[str]) -> ImageDataset:
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
        return ImageDataset(self.root, [photo.path for photo in good], labels, digests, self.eval_transform)

    def train_dataloader(self) -> DataLoader[Any]:
        """The photos of train, augmented and shuffled."""
        dataset = self.dataset("train", augmented=True, kept=True)
        if self.shards is not None:
            return ResumableDataLoader(dataset, self._shard_order(dataset), self._batches_done, **self._loading)
        order: Any = self.order(len(dataset))  # its keys are no plain numbers, which torch's types want
        batches = BatchSampler(order, self.per_rank_batch_size(rank_and_world_size()[1]), drop_last=False)
        return ResumableDataLoader(dataset, batches, self._batches_done, **self._loading)

    def val_dataloader(self) -> DataLoader[Any]:
        """The photos of val, centred: this process's part, filled up so that all take as many batches."""
        dataset = self.dataset("val", kept=True)
        return self.batches(
            dataset, local_slice(range(len(dataset)), PADDING_INDEX), self.per_rank_batch_size(rank_and_world_size()[1])
        )

    def order(self, length: int) -> EpochSampler:
        """The order of training over `length` items: this process's share of it."""
        return EpochSampler(length, self.seed, *rank_and_world_size())

    def per_rank_batch_size(self, ranks: int) -> int:
        """Photos of a step that each of so many processes takes. Raises ValueError where it is no whole number."""
        if self.batch_size % ranks:
            raise ValueError(f"data.batch_size={self.batch_size}: wanted a multiple of the {ranks} processes")
        return self.batch_size // ranks

    def _shard_order(self, dataset: ImageDataset) -> ShardShuffleBatchSampler:
        assert self.shards is not None
        rank, ranks = rank_and_world_size()
        numbers = self.shards.numbers(dataset.paths)
        self.shards.check_room(min((self.shuffle_shards + 2) * ranks, len(self.shards.names)))
        return ShardShuffleBatchSampler(
            numbers, self.per_rank_batch_size(ranks), self.seed, rank, ranks, self.shuffle_shards, self.shards.prefetch
        )

    def batches(
        self, dataset: ImageDataset, keys: SampleKeys | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        """Batches of `dataset`, decoded in parallel, in its own order or that of `keys`; of the data's own size."""
        order: Any = keys  # its keys are no plain numbers, which torch's types want
        if self.shards is not None:
            keys = range(len(dataset)) if keys is None else keys
            order = PrefetchingSampler(keys, self.shards.numbers(dataset.paths), self.shards.prefetch)
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


def inference_data_args(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings for its data, those that another program needs to show a network the same photos."""
    names = ("image_size", "resize", "batch_size", "num_workers", "on_corrupt")
    packed = ("packed", "s3_endpoint", "retry_timeout", "cache_gb")
    return {name: settings[name] for name in (*names, *packed) if name in settings}
