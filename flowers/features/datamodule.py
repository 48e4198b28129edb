"""The Lightning data module of the head stage: batches of cached features."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowers.data.datamodule import ImageDataModule
from flowers.data.samplers import EpochSampler
from flowers.features.extractor import CACHED, FeatureExtractor
from flowers.features.linear_probe import L2_GRID, fit_linear_probe
from flowers.models.network import Network
from flowers.runtime.distributed import local_slice, rank_and_world_size
from flowers.runtime.seeding import PADDING_INDEX
from flowers.settings.schema.training import Features


class FeatureDataModule(LightningDataModule):
    """Load batches of features (B, F) in float32 and labels (B,) in int64 of the images of `data`.

    Args:
        data: The images.
        model: The classifier; its backbone is frozen.
        views: 1 takes each training image as in validation; V > 1 takes one of V augmented views in each epoch.
        settings: See `FeatureExtractor`.
        steps_per_batch: Optimizer steps for which a training batch holds images.
    """

    def __init__(
        self,
        data: ImageDataModule,
        model: Network,
        views: int = 1,
        settings: Features = CACHED,
        steps_per_batch: int = 1,
    ) -> None:
        super().__init__()
        self.data, self.model, self.views, self.steps_per_batch = data, model, views, steps_per_batch
        self.settings = settings

    def train_dataloader(self) -> DataLoader[Any]:
        """Load the features of the training images, shuffled.

        The device of the model, on which the Trainer has put it by then, computes those that are not cached. Features
        by `engine=int8` are first checked with a linear probe in place of the head, which is yet to be trained.
        """
        dataset = self.data.dataset("train", augmented=self.views > 1)
        views = range(self.views) if self.views > 1 else (None,)
        features = torch.stack([self._extractor.extract(dataset, "train", view) for view in views])
        if self._extractor.int8 is not None:
            labels, classes = torch.tensor(dataset.labels), len(self.model.classes)
            probe = fit_linear_probe(features[0], labels, classes, L2_GRID[len(L2_GRID) // 2])
            self._extractor.int8.check_agreement(lambda asked: probe.logits(asked).argmax(1))
        batch_size = self.data.per_rank_batch_size(rank_and_world_size()[1]) * self.steps_per_batch
        order = self.data.train_sampler(dataset.labels)
        return _make_loader(FeatureDataset(features, dataset.labels), batch_size, order)

    def val_dataloader(self) -> DataLoader[Any]:
        """Load the features of this rank's validation images as one batch, in the order of split.csv."""
        dataset = self.data.dataset("val")
        features = FeatureDataset(self._extractor.extract(dataset, "val")[None], dataset.labels)
        return _make_loader(features, len(dataset), local_slice(range(len(dataset)), PADDING_INDEX))

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        assert self.trainer is not None, "the precision is that of the Trainer"
        return FeatureExtractor(self.data, self.model, str(self.trainer.precision), self.settings)


class FeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Cached features (V, N, F) and labels (N,), read a batch at a time.

    Item `(i, seed)` is view `seed % V` of image i. Item `PADDING_INDEX` is the features of any image with the label
    `PADDING_INDEX`.
    """

    def __init__(self, features: Tensor, labels: Sequence[int]) -> None:
        self.features, self.labels = features, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
        features, labels = self.pick(keys)
        return features.float(), labels

    def pick(self, keys: Sequence[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return the features as they are, and the labels."""
        # torch.tensor takes twice as long for such a list.
        pairs = torch.from_numpy(np.array([key if isinstance(key, tuple) else (key, 0) for key in keys]))
        index, seed = pairs.unbind(1)
        labels = torch.where(index == PADDING_INDEX, PADDING_INDEX, self.labels[index])
        return self.features[seed % len(self.features), index], labels


def _make_loader(features: FeatureDataset, batch_size: int, order: EpochSampler | list[int]) -> DataLoader[Any]:
    return DataLoader(features, batch_size, sampler=order, collate_fn=keep_batch, generator=torch.Generator())


def keep_batch(batch: Any) -> Any:
    """Return a batch as the dataset made it."""
    return batch
