"""The head stage's data: a frozen backbone is a pure function, so its features are computed once and kept."""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowers import progress
from flowers.data import FlowersData, PhotoSet
from flowers.model import FlowerClassifier
from flowers.sampler import EpochSampler

log = logging.getLogger(__name__)


class FrozenFeatures(LightningDataModule):
    """Batches of `(features, labels)`: float32 (B, F) and int64 (B,), of the photos that `data` gives.

    Args:
        data: the photos.
        model: whose backbone is frozen.
        views: 1 for each training photo as in validation; V > 1 for V augmented views of it, an epoch taking one.
    """

    def __init__(self, data: FlowersData, model: FlowerClassifier, views: int = 1) -> None:
        super().__init__()
        if views < 1:
            raise ValueError(f"head.views={views}: wanted 0 (fresh augmentation each epoch) or more")
        self.data, self.model, self.views = data, model, views

    def train_dataloader(self) -> DataLoader[Any]:
        """The features of train, shuffled. Computes them on the device where the trainer has put the model."""
        dataset = self.data.dataset("train", augmented=self.views > 1)
        views = [
            self._compute(self.data.batches(dataset, self._keys(dataset, view)), len(dataset), "train")
            for view in range(self.views)
        ]
        features = FeatureSet(torch.stack(views), torch.tensor(dataset.labels))
        return self._loader(features, self.data.order(len(dataset), self.trainer))

    def val_dataloader(self) -> DataLoader[Any]:
        """The features of val, in the order of split.csv."""
        dataset = self.data.dataset("val")
        features = self._compute(self.data.batches(dataset), len(dataset), "val")
        return self._loader(FeatureSet(features[None], torch.tensor(dataset.labels)))

    def _keys(self, dataset: PhotoSet, view: int) -> list[tuple[int, int]]:
        """The photos in their own order, with the seeds of an epoch that fresh augmentation never comes to."""
        sampler = EpochSampler(len(dataset), self.data.seed)
        sampler.set_epoch(-1 - view)
        return sorted(sampler)

    def _compute(self, batches: Iterable[tuple[Tensor, Tensor]], count: int, split: str) -> Tensor:
        assert self.trainer is not None, "the trainer says where and how precisely to compute"
        start = time.perf_counter()
        features = extract(
            self.model, progress.bar(batches, f"Features of {split}"), self.trainer.precision_plugin.forward_context()
        )
        seconds = time.perf_counter() - start
        log.info("features of %d %s photos: %.1f s, %.0f photos/s", count, split, seconds, count / seconds)
        return features

    def _loader(self, features: "FeatureSet", sampler: EpochSampler | None = None) -> DataLoader[Any]:
        return DataLoader(
            features, self.data.batch_size, sampler=sampler, collate_fn=_as_it_is, generator=torch.Generator()
        )


class FeatureSet(Dataset[tuple[Tensor, Tensor]]):
    """Kept features (V, N, F) and labels (N,), a batch at a time: item `(i, seed)` is view `seed % V` of photo i."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
        pairs = torch.tensor([key if isinstance(key, tuple) else (key, 0) for key in keys])
        index, seed = pairs.unbind(1)
        return self.features[seed % len(self.features), index], self.labels[index]


@torch.inference_mode()
def extract(
    model: FlowerClassifier, batches: Iterable[tuple[Tensor, Tensor]], context: AbstractContextManager[Any]
) -> Tensor:
    """The features float32 (N, F) of the photos in `batches`, on the CPU; the backbone is used as it stands."""
    assert not model.backbone.training, "a backbone in training mode is not a pure function"
    with context:
        return torch.cat([model.features(photos.to(model.device, non_blocking=True)).cpu() for photos, _ in batches])


def _as_it_is(batch: Any) -> Any:
    return batch
