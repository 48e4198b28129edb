"""The Lightning data module of the head stage: batches of cached features."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowers.data.datamodule import ImageDataModule
from flowers.data.samplers import EpochSampler
from flowers.features.extractor import FeatureExtractor
from flowers.models.classifier import ImageClassifier
from flowers.runtime.distributed import local_slice, rank_and_world_size
from flowers.runtime.seeding import PADDING_INDEX

_STEPS_PER_BATCH = 64  # steps


_UNDISTURBED = {  # of a Trainer that neither counts batches nor touches gradients
    "world_size": 1,
    "gradient_clip_val": None,
    "accumulate_grad_batches": 1,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,
    "max_steps": -1,
}


class FeatureDataModule(LightningDataModule):
    """Batches of `(features, labels)`: float32 (B, F) and int64 (B,), of the photos that `data` gives.

    Args:
        data: the photos.
        model: whose backbone is frozen.
        views: 1 for each training photo as in validation; V > 1 for V augmented views of it, an epoch taking one.
        cache, cache_gb: see `Features`.
    """

    def __init__(
        self, data: ImageDataModule, model: ImageClassifier, views: int = 1, cache: bool = True, cache_gb: float = 10.0
    ) -> None:
        super().__init__()
        if views < 1:
            raise ValueError(f"head.cached_views={views}: wanted 0 (fresh augmentation each epoch) or more")
        self.data, self.model, self.views = data, model, views
        self.keeping = {"cache": cache, "cache_gb": cache_gb}

    def setup(self, stage: str) -> None:
        """Has the head take its steps by the block, unless something is to happen between two of them."""
        if all(getattr(self.trainer, name) == value for name, value in _UNDISTURBED.items()):
            self.model.set_steps_per_batch(self.data.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """The features of train, shuffled. Computes them on the device where the trainer has put the model."""
        dataset = self.data.dataset("train", augmented=self.views > 1)
        views = range(self.views) if self.views > 1 else (None,)
        features = torch.stack([self._features.extract(dataset, "train", view) for view in views])
        batch_size = self.data.per_rank_batch_size(rank_and_world_size()[1]) * (
            1 if self.model.step_photos is None else _STEPS_PER_BATCH
        )
        order = self.data.train_sampler(len(dataset))
        return _make_loader(FeatureDataset(features, dataset.labels), batch_size, order)

    def val_dataloader(self) -> DataLoader[Any]:
        """The features of val, in the order of split.csv, as one batch, as they are small: this process's part."""
        dataset = self.data.dataset("val")
        features = FeatureDataset(self._features.extract(dataset, "val")[None], dataset.labels)
        return _make_loader(features, len(dataset), local_slice(range(len(dataset)), PADDING_INDEX))

    @property
    def _features(self) -> FeatureExtractor:
        assert self.trainer is not None, "the trainer says where and how precisely to compute"
        return FeatureExtractor(self.data, self.model, str(self.trainer.precision), **self.keeping)  # type: ignore[arg-type]


class FeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Kept features (V, N, F) and labels (N,), a batch at a time: item `(i, seed)` is view `seed % V` of photo i.

    Item FILLING is any photo, labelled FILLING.
    """

    def __init__(self, features: Tensor, labels: Sequence[int]) -> None:
        self.features, self.labels = features, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
        pairs = torch.tensor([key if isinstance(key, tuple) else (key, 0) for key in keys])
        index, seed = pairs.unbind(1)
        return self.features[seed % len(self.features), index].float(), torch.where(
            index == PADDING_INDEX, PADDING_INDEX, self.labels[index]
        )


def _make_loader(features: FeatureDataset, batch_size: int, order: EpochSampler | list[int]) -> DataLoader[Any]:
    return DataLoader(features, batch_size, sampler=order, collate_fn=_identity, generator=torch.Generator())


def _identity(batch: Any) -> Any:
    return batch
