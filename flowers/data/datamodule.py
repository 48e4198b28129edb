"""The data module: batches of images and labels from a folder or from shards."""

import copy
import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from flowers.data.corrections import Corrections, load_corrections
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
from flowers.data.shards import MANIFEST_FILE, ShardSource
from flowers.data.splits import SplitRecord, check_split, load_split, split_sha256
from flowers.data.transforms import (
    ResizeIfLarger,
    eval_settings,
    eval_transform,
    max_useful_side,
    train_transform,
)
from flowers.runtime.distributed import local_slice, rank_and_world_size
from flowers.runtime.hardware import available_cores
from flowers.runtime.interrupt import ignore_stop_signals
from flowers.runtime.seeding import PADDING_INDEX
from flowers.runtime.text import one_line
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.training import Pixels, Remote
from flowers.settings.schema.values import Balance, Interpolation
from flowers.settings.validation import check_values


def inference_data_args(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data arguments of a training run that another program needs to show a model the same images."""
    names = ("image_size", "resize", "interpolation", "batch_size", "num_workers", "on_corrupt")
    packed = ("packed", "s3_endpoint", "retry_timeout", "cache_gb")
    arguments = {name: settings[name] for name in (*names, *packed) if name in settings}
    # The settings may be those of a stranger, or of another machine: they start no thousand processes here.
    limits = {"num_workers": max(available_cores(), 8), "batch_size": 1024}
    return arguments | {name: min(arguments[name], most) for name, most in limits.items() if arguments.get(name)}


def run_images_args(settings: Mapping[str, Any], given: str | None, key: str = "root") -> dict[str, Any]:
    """Return the arguments of `ImageDataModule` for the photos of a run, as `inference_data_args`, with their root.

    A run folder may come from a stranger: it does not say where to connect. An address in its settings, and the S3
    endpoint for it, counts only if the user gives the same address.

    Args:
        settings: The group `data` of the configuration of the run.
        given: Where the user says that the photos are now: a folder or an address. None for where the run had them.
        key: The setting with which the user says so, for messages.

    Raises:
        ValueError: The run had its photos at an address, and none is given.
    """
    arguments, stored = inference_data_args(settings), str(settings["root"])
    if given is None:
        if "://" in stored:
            raise ValueError(
                f"the photos of the run are at an address, to which a run folder alone does not connect: give "
                f"{key}={one_line(stored)} to read them there, or {key}=FOLDER"
            )
        return arguments | {"root": stored}
    if given != stored:
        is_packed = is_remote(given) or Path(given, MANIFEST_FILE).is_file()
        arguments |= {"packed": is_packed, "s3_endpoint": None}
    return arguments | {"root": given}


class ImageDataModule(LightningDataModule):
    """Batches `(images, labels)`: uint8 (B, 3, image_size, image_size) and int64 (B,).

    Training images are augmented. All other images are resized and cropped to the center.

    The constructor checks the arguments, `split_file` and `corrections`. The images are found, checked and split on
    first use.

    Args:
        root: Folder with one subfolder per class. With `packed`: folder or http, https or s3 address of shards.
        source: Called with `root` to create the folder, such as by a download; None if the folder exists.
        val_fraction: Share of the images in val, from 0 to below 1; unused with `folds`.
        test_fraction: Share of the images in test, from 0 to below 1.
        folds: Number of cross-validation folds, at least 2; 0 for a single split by `val_fraction`.
        fold: The fold that is val, from 0 to `folds` - 1.
        split_seed: Seed of the split.
        split_file: A split.csv with paths below `root`, used in place of a new split.
        corrections: A corrections.csv: photos below `root` to relabel or to leave out, by the digest of their contents.
        on_corrupt: For files that cannot be read: "error" lists them and stops, "skip" lists and ignores them.
        image_size: Side of the images that the network sees, in pixels.
        resize: Shorter side of evaluation images before the center crop, in pixels; at least `image_size`.
        interpolation: How images are resized, with antialiasing: "bilinear" or "bicubic".
        crop_scale: Smallest and largest share of the image area in a training crop, above 0 and at most 1.
        crop_ratio: Smallest and largest width / height of a training crop, above 0.
        hflip_prob: Probability that a training image is flipped horizontally, from 0 to 1.
        brightness: Training images are multiplied by a factor from 1 - `brightness` to 1 + `brightness`; at least 0.
        contrast: The same for the contrast.
        saturation: The same for the saturation.
        hue: Largest rotation of the hue, as a share of the color circle, from 0 to 0.5.
        augmentation: Makes the training transform from `image_size`, `resize` and the settings from `interpolation`
            to `hue`, given by name; None for `train_transform`. It maps uint8 (3, H, W) to uint8 (3, image_size,
            image_size) and draws from the global generator of torch.
        balance: For classes of different sizes in training: "weights" weights the loss of each image, "sampler" draws
            equally many images of each class in each epoch, "none" does neither.
        batch_size: Images per step, over all processes.
        num_workers: Dataloader workers per process; None for one per core, at most 8.
        decoded_cache_fraction: Share of the free memory for decoded images, from 0 to below 1; 0 reads them from disk
            in each epoch.
        seed: Seed of the training order and the augmentations.
        packed: Whether `root` holds shards written by `flowers.pack`. These contain their split.
        s3_endpoint: URL of an S3-compatible server; None for $AWS_ENDPOINT_URL, or else AWS.
        retry_timeout: Seconds after which a failing download is given up.
        cache_gb: Disk space for copies of remote shards, in GiB.
        shuffle_shards: Number of shards that are read at the same time, so that their images mix.

    Raises:
        ValueError: For an invalid argument; on first use, for images or a split that cannot be used.
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
        corrections: str | Path | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        image_size: int = 224,
        resize: int = 256,
        interpolation: Interpolation = "bilinear",
        crop_scale: Sequence[float] = (0.5, 1.0),
        crop_ratio: Sequence[float] = (0.75, 1.333),
        hflip_prob: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        augmentation: Callable[..., Callable[[Tensor], Tensor]] | None = None,
        balance: Balance = "none",
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
        drawn: dict[str, Any] = {
            "crop_scale": list(crop_scale) if isinstance(crop_scale, Sequence) else crop_scale,
            "crop_ratio": list(crop_ratio) if isinstance(crop_ratio, Sequence) else crop_ratio,
            "hflip_prob": hflip_prob,
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        }
        loading = {
            "balance": balance,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "decoded_cache_fraction": decoded_cache_fraction,
        }
        size = {"image_size": image_size, "resize": resize, "interpolation": interpolation}
        check_values({**size, **drawn, **loading}, Pixels, "data.")
        remote = {"retry_timeout": retry_timeout, "cache_gb": cache_gb, "shuffle_shards": shuffle_shards}
        check_values(remote, Remote, "data.")
        if is_remote(root) and not packed:
            raise ValueError(f"data.root={root}: expected a folder; an address needs data=shards (see flowers.pack)")
        if packed and balance == "sampler":  # the copies of a rare image would all fall into the time of its shard
            raise ValueError("data.balance=sampler with data=shards: expected data.balance=weights or none")
        self.shards = ShardSource(str(root), s3_endpoint, retry_timeout, cache_gb) if packed else None
        self.corrections = Corrections() if corrections is None else load_corrections(corrections)
        self.root = self.shards or ImageFolderSource(
            root, source, on_corrupt, val_fraction, test_fraction, folds, fold, split_seed, self.corrections
        )
        self.split_file = split_file
        self._split = None if split_file is None else load_split(split_file)
        self.preprocessing = Preprocessing(image_size, resize, interpolation)
        self._eval_settings = eval_settings(self.preprocessing)
        self._train_settings = self._eval_settings | drawn
        if augmentation is None:
            self.train_transform: Callable[[Tensor], Tensor] = train_transform(
                image_size, **drawn, interpolation=interpolation
            )
        else:
            self._train_settings |= {"augmentation": _describe(augmentation)}
            self.train_transform = augmentation(**size, **drawn)
        self.resize_if_larger = ResizeIfLarger(
            max(resize, max_useful_side(image_size, crop_scale, crop_ratio)), interpolation
        )
        self.eval_transform = eval_transform(self.preprocessing)
        self.balance = balance
        self.batch_size = batch_size
        self.num_workers = min(available_cores(), 8) if num_workers is None else num_workers
        self.decoded_cache_fraction = decoded_cache_fraction
        self.seed = seed
        self.shuffle_shards = shuffle_shards

    @cached_property
    def records(self) -> list[SplitRecord]:
        """The images in use, with their split."""
        if self.corrections.lines:
            self.corrections.check(self.root.images, str(self.root))
        if self._split is None:
            return self.corrections.apply(self.root.records)
        return self.corrections.apply(check_split(self._split, self.root.images, str(self.split_file)))

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
        return dict(self._train_settings if augmented else self._eval_settings)

    def resized(self, preprocessing: Preprocessing) -> Self:
        """Return a copy with the same images, prepared in another way for evaluation."""
        copied = copy.copy(self)
        copied.preprocessing = preprocessing
        copied._eval_settings = eval_settings(preprocessing)
        copied.eval_transform = eval_transform(preprocessing)
        return copied

    def setup(self, stage: str) -> None:
        """Check that there are images to train and validate with. Lightning calls it before it uses any of them.

        Raises:
            ValueError: If train or val has none.
        """
        for split in ("train", "val") if stage == "fit" else ():
            self._split_records(split)

    def dataset(self, split: str, augmented: bool = False, cache: bool = False) -> ImageDataset:
        """Return the images of `split`, in the order of split.csv, or of the shards if they are packed.

        Args:
            split: train, val or test.
            augmented: Whether to augment the images; otherwise they are cropped to the center.
            cache: Whether to cache decoded images in memory.

        Raises:
            ValueError: If the split has no images.
        """
        records = self._split_records(split)
        if self.shards is not None:
            records = self.shards.sort_by_shard(records)
        labels = [self.class_numbers[record.label] for record in records]
        if augmented:
            prepare, augment = self.resize_if_larger, self.train_transform
            prepared = f"{prepare.side} {prepare.mode}"
        else:
            prepare, augment, prepared = self.eval_transform, None, json.dumps(self._eval_settings)
        decoded = None
        if cache:
            share = self.decoded_cache_fraction / 2 / rank_and_world_size()[1]  # train and val, in each process
            decoded = decoded_image_cache((split_sha256(records), prepared), split, len(records), share)
        return ImageDataset(
            self.root,
            [record.path for record in records],
            labels,
            [record.sha256 for record in records],
            prepare,
            augment,
            decoded,
        )

    def full_dataset(self, classes: Sequence[str]) -> ImageDataset:
        """Return all readable images of all splits, cropped to the center, labeled by their position in `classes`.

        Raises:
            ValueError: If an image has another class.
        """
        if self.corrections.lines:
            self.corrections.check(self.root.images, str(self.root))
        images = self.corrections.apply(self.root.images)
        if unknown := {image.label for image in images} - set(classes):
            raise ValueError(
                f"{one_line(self.root)} has the class(es) {one_line(', '.join(sorted(unknown)))}: "
                f"expected only classes of the model: {one_line(', '.join(classes))}"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[image.label] for image in images]
        digests = [image.sha256 for image in images]
        return ImageDataset(self.root, [image.path for image in images], labels, digests, self.eval_transform)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented images of train."""
        dataset = self.dataset("train", augmented=True, cache=True)
        if self.shards is not None:
            return self._train_loader(dataset, self._shard_sampler(dataset))
        sampler: Any = self.train_sampler(dataset.labels)  # torch's types expect plain indices
        batches = BatchSampler(sampler, self.per_rank_batch_size(rank_and_world_size()[1]), drop_last=False)
        return self._train_loader(dataset, batches)

    def _train_loader(self, dataset: ImageDataset, batches: Sampler[Any]) -> ResumableDataLoader:
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
        sampler: Any = keys  # torch's types expect plain indices
        if self.shards is not None:
            keys = range(len(dataset)) if keys is None else keys
            # Each process reads one shard, ends another, and prefetches a third.
            self.shards.check_cache_size(3 * rank_and_world_size()[1])
            sampler = PrefetchingSampler(keys, self.shards.shard_numbers(dataset.paths), self.shards.prefetch)
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

    def _split_records(self, split: str) -> list[SplitRecord]:
        if records := [record for record in self.records if record.split == split]:
            return records
        raise ValueError(
            f"the split {split} has no images: set data.val_fraction, data.test_fraction or data.split_file, "
            "or add images"
        )

    def _shard_sampler(self, dataset: ImageDataset) -> ShardShuffleBatchSampler:
        assert self.shards is not None
        rank, world_size = rank_and_world_size()
        self.shards.check_cache_size(
            (self.shuffle_shards + 2) * world_size, "; a smaller data.shuffle_shards needs less"
        )
        return ShardShuffleBatchSampler(
            self.shards.shard_numbers(dataset.paths),
            self.per_rank_batch_size(world_size),
            self.seed,
            rank,
            world_size,
            self.shuffle_shards,
            self.shards.prefetch,
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


def _describe(function: Callable[..., Any]) -> str:
    """Return the name of a function and the arguments that it is given, as part of a cache key."""
    target, given = (function.func, function.keywords) if isinstance(function, functools.partial) else (function, {})
    return f"{target.__module__}.{target.__qualname__} {json.dumps(given, sort_keys=True)}"
