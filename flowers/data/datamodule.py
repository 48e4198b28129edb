"""The data module: batches of images and labels from a folder or from shards."""

import copy
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from flowers.data.corrections import Corrections
from flowers.data.dataset import ImageDataset, decoded_image_cache
from flowers.data.pixels import bit_depth_of
from flowers.data.samplers import EpochSampler, ResumableDataLoader, SampleKeys
from flowers.data.sources.build import SOURCE_SETTINGS, build_source
from flowers.data.sources.source import ImageSource
from flowers.data.splits import ImageRecord, SplitRecord, split_sha256
from flowers.data.splitter import Splitter
from flowers.data.transforms import Augmentation, eval_settings, eval_transform
from flowers.runtime.distributed import local_slice, rank_and_world_size
from flowers.runtime.hardware import available_cores
from flowers.runtime.interrupt import ignore_stop_signals
from flowers.runtime.seeding import PADDING_INDEX
from flowers.runtime.text import one_line
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.training import Pixels
from flowers.settings.schema.values import Balance
from flowers.settings.validation import check_values

log = logging.getLogger(__name__)

_DARK = 16  # an image is nearly black if its brightest pixels have less than this of 255


@dataclass(frozen=True)
class Loading:
    """How images become batches.

    Attributes:
        balance: For classes of different sizes in training: "weights" weights the loss of each image, "sampler" draws
            equally many images of each class in each epoch, "none" does neither.
        batch_size: Images per step, over all processes.
        num_workers: Dataloader workers per process; None for one per core, at most 8.
        decoded_cache_fraction: Share of the free memory for decoded images, from 0 to below 1; 0 reads them from disk
            in each epoch.
    """

    balance: Balance = "none"
    batch_size: int = 64
    num_workers: int | None = None
    decoded_cache_fraction: float = 0.5


class ImageDataModule(LightningDataModule):
    """Batches `(images, labels)`: uint8 (B, 3, image_size, image_size) and int64 (B,).

    Training images are augmented. All other images are resized and cropped to the center.

    The constructor checks the settings. The images are found, checked and split on first use.

    Args:
        source: Where the images are.
        splitter: Which of them are train, val and test.
        preprocessing: Size and resizing of the images. The network normalizes them.
        augmentation: How training images are drawn.
        loading: How they become batches.
        seed: Seed of the training order and the augmentations.

    Raises:
        ValueError: For an invalid setting; on first use, for images or a split that cannot be used.
    """

    def __init__(
        self,
        source: ImageSource,
        splitter: Splitter,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.splitter, self.seed = source, splitter, seed
        self.augmentation, loading = augmentation or Augmentation(), loading or Loading()
        size = {name: getattr(preprocessing, name) for name in ("image_size", "resize", "interpolation", "bit_depth")}
        check_values({**size, **self.augmentation.drawn(), **asdict(loading)}, Pixels, "data.")
        if source.is_sequential and loading.balance == "sampler":  # all copies of a rare image would be read at once
            raise ValueError("data.balance=sampler with data=shards: expected data.balance=weights or none")
        self.balance, self.batch_size = loading.balance, loading.batch_size
        self.num_workers = min(available_cores(), 8) if loading.num_workers is None else loading.num_workers
        self.decoded_cache_fraction, self._has_warned = loading.decoded_cache_fraction, False
        self._prepare(preprocessing)

    @classmethod
    def from_settings(cls, root: str | Path | None = None, seed: int = 0, **settings: Any) -> Self:
        """Return the images of settings: the keys of the group `data` of the configuration, whose parts are built.

        What is not given has the default value of `build_source`, `Splitter`, `Preprocessing`, `Augmentation` or
        `Loading`.

        Args:
            root: The folder of the images, or of shards, or their address; None for that of the setting `table`.
            seed: Seed of the training order and the augmentations.
            settings: The other keys, such as `image_size` and `val_fraction`.

        Raises:
            ValueError: A setting is wrong.
            TypeError: There is no such setting.
        """
        kinds = Splitter, Preprocessing, Augmentation, Loading
        names = [{each.name for each in fields(kind)} for kind in kinds]
        if unknown := settings.keys() - SOURCE_SETTINGS.union(*names):
            raise TypeError(f"no such setting of images: {', '.join(sorted(unknown))}")
        given = [{name: settings[name] for name in settings.keys() & own} for own in names]
        splitter, preprocessing = Splitter(**given[0]), Preprocessing(**given[1])
        augmentation, loading = Augmentation(**given[2]), Loading(**given[3])
        source = build_source({"root": root, **settings})
        return cls(source, splitter, preprocessing, augmentation, loading, seed)

    def _prepare(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.eval_transform = eval_transform(preprocessing)
        self.train_transform = self.augmentation.transform(preprocessing)
        self.resize_if_larger = self.augmentation.resize_if_larger(preprocessing)

    @property
    def corrections(self) -> Corrections:
        """The corrections of labels."""
        return self.splitter.label_corrections

    @cached_property
    def images(self) -> list[ImageRecord]:
        """All images that can be read, with their corrected labels."""
        return self.splitter.corrected(self.source)

    @cached_property
    def bit_depth(self) -> int | None:
        """The bits of grayscale images of more than 8 bits, given or measured; None if there are no such images.

        It is also None where each file decides, as in earlier versions.
        """
        if self.preprocessing.bit_depth != "auto":
            return self.preprocessing.bit_depth
        return bit_depth_of(max(peaks)) if (peaks := self.source.gray_peaks) else None

    @cached_property
    def records(self) -> list[SplitRecord]:
        """The images in use, with their split."""
        return self.splitter.split(self.source)

    @cached_property
    def classes(self) -> list[str]:
        """The class names in the order of the class numbers."""
        return sorted({record.label for record in self.records})

    @cached_property
    def class_numbers(self) -> dict[str, int]:
        """The number of each class."""
        return {name: number for number, name in enumerate(self.classes)}

    @cached_property
    def split_digest(self) -> str:
        """The SHA-256 of split.csv."""
        return split_sha256(self.records)

    def counts(self, split: str) -> Counter[str]:
        """Return the number of images of each class in `split`."""
        return Counter(record.label for record in self.records if record.split == split)

    def class_weights(self) -> list[float] | None:
        """Return the weight of a training image of each class, in the order of `classes`; None without `balance`.

        N training images of C classes, n of a class, give the weight N / (C n): all classes have the same total weight,
        and the mean over the training images is 1. A class without training images has weight 0, and is not counted.
        """
        if self.balance == "none":
            return None
        counts = self.counts("train")
        return [counts.total() / (len(counts) * counts[name]) if counts[name] else 0.0 for name in self.classes]

    def transform_settings(self, augmented: bool = False) -> dict[str, Any]:
        """Return all that determines how an image file becomes pixels, ready for JSON, as part of a cache key."""
        settings = self.augmentation.settings(self.preprocessing) if augmented else eval_settings(self.preprocessing)
        return settings | ({"bit_depth": self.bit_depth} if self.bit_depth else {})  # ordinary images keep their keys

    def resized(self, preprocessing: Preprocessing) -> Self:
        """Return a copy with the same images, prepared in another way."""
        copied = copy.copy(self)
        copied._prepare(preprocessing)
        return copied

    def setup(self, stage: str) -> None:
        """Check that there are images to train and validate with. Lightning calls it before it uses any of them.

        Raises:
            ValueError: If train or val has none.
        """
        for split in ("train", "val") if stage == "fit" else ():
            self._split_records(split)

    def dataset(self, split: str, augmented: bool = False, cache: bool = False) -> ImageDataset:
        """Return the images of `split`, in the order of the source: of split.csv, or of the shards if they are packed.

        Args:
            split: train, val or test.
            augmented: Whether to augment the images; otherwise they are cropped to the center.
            cache: Whether to cache decoded images in memory.

        Raises:
            ValueError: If the split has no images.
        """
        records = self.source.sort(self._split_records(split))
        self._warn_of_dark_images()
        labels = [self.class_numbers[record.label] for record in records]
        if augmented:
            prepare, augment = self.resize_if_larger, self.train_transform
            prepared = f"{prepare.side} {prepare.mode} {self.bit_depth}"
        else:
            prepare, augment, prepared = self.eval_transform, None, json.dumps(self.transform_settings())
        decoded = None
        if cache:
            share = self.decoded_cache_fraction / 2 / rank_and_world_size()[1]  # train and val, in each process
            decoded = decoded_image_cache((split_sha256(records), prepared), split, len(records), share)
        return ImageDataset(
            self.source,
            [record.path for record in records],
            labels,
            [record.sha256 for record in records],
            prepare,
            augment,
            decoded,
            self.bit_depth,
        )

    def full_dataset(self, classes: Sequence[str]) -> ImageDataset:
        """Return all readable images of all splits, cropped to the center, labeled by their position in `classes`.

        Raises:
            ValueError: If an image has another class.
        """
        if unknown := {image.label for image in self.images} - set(classes):
            raise ValueError(
                f"{one_line(self.source)} has the class(es) {one_line(', '.join(sorted(unknown)))}: "
                f"expected only classes of the model: {one_line(', '.join(classes))}"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[image.label] for image in self.images]
        paths, digests = [image.path for image in self.images], [image.sha256 for image in self.images]
        self._warn_of_dark_images()
        return ImageDataset(self.source, paths, labels, digests, self.eval_transform, bit_depth=self.bit_depth)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented images of train."""
        dataset = self.dataset("train", augmented=True, cache=True)
        batch_size = self.per_rank_batch_size(rank_and_world_size()[1])
        batches = self.source.training_batches(dataset.paths, self.train_sampler(dataset.labels), batch_size)
        return ResumableDataLoader(
            dataset, batches, lambda: batches_done(self), lambda: has_next_epoch(self), **self._loading
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the share of val of this process, padded so that all processes have the same number of batches."""
        dataset = self.dataset("val", cache=True)
        indices = local_slice(range(len(dataset)), PADDING_INDEX)
        return self.batches(dataset, indices, self.per_rank_batch_size(rank_and_world_size()[1]))

    def batches(
        self, dataset: ImageDataset, keys: SampleKeys | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        """Return a dataloader that does not shuffle.

        Args:
            dataset: The images.
            keys: The items to load, in order; None for all items.
            batch_size: Images per batch; None for the `batch_size` of the data module.
        """
        sampler = self.source.reading_order(dataset.paths, keys)
        return DataLoader(dataset, batch_size=batch_size or self.batch_size, sampler=sampler, **self._loading)

    def train_sampler(self, labels: Sequence[int]) -> EpochSampler:
        """Return this process's share of the training order of images with these labels."""
        balanced_labels = labels if self.balance == "sampler" else None
        return EpochSampler(len(labels), self.seed, *rank_and_world_size(), balanced_labels)

    def per_rank_batch_size(self, world_size: int) -> int:
        """Return the number of images per step in each of `world_size` processes.

        Raises:
            ValueError: If `batch_size` is not a multiple of `world_size`.
        """
        if self.batch_size % world_size:
            raise ValueError(f"data.batch_size={self.batch_size}: expected a multiple of the {world_size} processes")
        return self.batch_size // world_size

    def _warn_of_dark_images(self) -> None:
        """Say once how many images have next to no gray levels left."""
        if self.bit_depth is None or self._has_warned:
            return
        self._has_warned, peaks = True, self.source.gray_peaks
        if dark := sum(peak * 255 < _DARK * (2**self.bit_depth - 1) for peak in peaks):
            log.warning(
                "data.bit_depth=%d: %d of %d grayscale photos of more than 8 bits are nearly black, below %d of 255: "
                "give the bits of the camera, or divide photos of different cameras",
                *(self.bit_depth, dark, len(peaks), _DARK),
            )

    def _split_records(self, split: str) -> list[SplitRecord]:
        if records := [record for record in self.records if record.split == split]:
            return records
        raise ValueError(
            f"the split {split} has no images: set data.val_fraction, data.test_fraction, data.group_by or "
            "data.split_file, or add images"
        )

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": ignore_stop_signals,  # a terminal sends Ctrl-C to all processes; this one stops them
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # the global generator must not depend on how the data is loaded
        }


def batches_done(data: LightningDataModule) -> int:
    """Return how many training batches of this epoch are done: more than 0 after a resume inside an epoch."""
    return data.trainer.fit_loop.epoch_loop.batch_progress.current.ready if data.trainer else 0


def has_next_epoch(data: LightningDataModule) -> bool:
    """Return whether the stage has an epoch after this one."""
    trainer = data.trainer
    return trainer is not None and trainer.max_epochs is not None and trainer.current_epoch + 1 < trainer.max_epochs
