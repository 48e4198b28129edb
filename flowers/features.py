"""The head stage's data: a frozen backbone is a pure function, so its features are computed once and kept."""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowers import progress, sharing
from flowers.data import FlowersData
from flowers.frozen import FrozenPass, dtype_of
from flowers.kept import Kept, Placed, joined
from flowers.model import FlowerClassifier
from flowers.photoset import PhotoSet
from flowers.sampler import FILLING, EpochSampler

log = logging.getLogger(__name__)

_BLOCK = 64  # steps
_UNDISTURBED = {  # of a Trainer that neither counts batches nor touches gradients
    "world_size": 1,
    "gradient_clip_val": None,
    "accumulate_grad_batches": 1,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,
    "max_steps": -1,
}


class Features:
    """The features that a model's backbone, as it stands, has for photos: kept ones where there are, else computed.

    Args:
        data: how photos are transformed and read.
        model: whose backbone is used, on the device where it is.
        precision: a name of Lightning's, such as "bf16-mixed".
        cache: whether they are kept on disk; only for a backbone whose digest is the model's `weights_digest`.
        max_gb: see `Kept`.
    """

    def __init__(
        self, data: FlowersData, model: FlowerClassifier, precision: str, cache: bool = True, max_gb: float = 10.0
    ) -> None:
        self.data, self.model, self.precision = data, model, precision
        self.cache, self.max_gb = cache, max_gb

    def of(self, dataset: PhotoSet, name: str, view: int | None = None) -> Tensor:
        """Features (N, F) in the precision of the pass, on the CPU, in the order of `dataset`.

        Args:
            dataset: the photos, augmented where `view` is given.
            name: of the photos, for people.
            view: which of the augmented views; None for the photos as in validation.
        """
        computed = 0

        def compute(places: Sequence[int]) -> Iterator[Placed]:
            nonlocal computed
            for batch in self._computed(dataset, name, view, sharing.of_first(places)):
                computed += len(batch[0])
                yield batch

        start = time.perf_counter()
        features = self._fetched(dataset, view, compute)
        seconds = time.perf_counter() - start
        if computed:
            rate = f"{seconds:.1f} s, {computed / seconds:.0f} photos/s"
            log.info("features of %d %s photos: %d computed in %s", len(dataset), name, computed, rate)
        else:
            log.info("features of %d %s photos: found in %.1f s", len(dataset), name, seconds)
        return features

    def _computed(self, dataset: PhotoSet, name: str, view: int | None, places: Sequence[int]) -> Iterator[Placed]:
        """The features of photos at some places, in batches; each process computes those of a stretch of the places."""
        if not places:
            return
        frozen = FrozenPass(self.model, self.precision)
        part = sharing.part(places, FILLING)
        keys = [(place, 0 if view is None else _seed(dataset.digests[place], view)) for place in part]
        batches = self.data.batches(dataset, keys, frozen.batch_size)
        taken = (part[start : start + frozen.batch_size] for start in range(0, len(part), frozen.batch_size))
        for mine, (photos, _) in zip(taken, progress.bar(batches, f"Features of {name}"), strict=True):
            for batch, features in sharing.of_all((mine, frozen(photos).cpu())):
                count = sum(place != FILLING for place in batch)  # those that fill up are its last
                yield batch[:count], features[:count]

    def _fetched(
        self, dataset: PhotoSet, view: int | None, compute: Callable[[Sequence[int]], Iterator[Placed]]
    ) -> Tensor:
        if not self.cache:
            places, features = joined(compute(range(len(dataset))))
            return features[torch.tensor(places).argsort()]
        if sharing.rank()[0] == 0:
            return sharing.of_first(Kept(self._recipe(view), self.max_gb).fetch(dataset.digests, compute))
        deque(compute(()), maxlen=0)  # its part of those that the first process does not find
        return sharing.of_first(torch.empty(0))

    def _recipe(self, view: int | None) -> dict[str, str]:
        model, transform = self.model, self.data.centre if view is None else self.data.augment
        return {
            "format": "1",
            "backbone": str(model.hparams["weights_digest"]),
            "architecture": json.dumps([model.hparams["architecture"], model.hparams["options"]]),
            "pixels": f"{transform} {self.data.centre} {model.normalise}",
            "view": str(view),
            "precision": f"{dtype_of(self.precision)} on {model.device.type}",
            "versions": " ".join(version(name) for name in ("torch", "torchvision", "pillow")),
        }


class FrozenFeatures(LightningDataModule):
    """Batches of `(features, labels)`: float32 (B, F) and int64 (B,), of the photos that `data` gives.

    Args:
        data: the photos.
        model: whose backbone is frozen.
        views: 1 for each training photo as in validation; V > 1 for V augmented views of it, an epoch taking one.
        cache, max_gb: see `Features`.
    """

    def __init__(
        self, data: FlowersData, model: FlowerClassifier, views: int = 1, cache: bool = True, max_gb: float = 10.0
    ) -> None:
        super().__init__()
        if views < 1:
            raise ValueError(f"head.views={views}: wanted 0 (fresh augmentation each epoch) or more")
        self.data, self.model, self.views = data, model, views
        self.keeping = {"cache": cache, "max_gb": max_gb}

    def setup(self, stage: str) -> None:
        """Has the head take its steps by the block, unless something is to happen between two of them."""
        if all(getattr(self.trainer, name) == value for name, value in _UNDISTURBED.items()):
            self.model.take_steps_of(self.data.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """The features of train, shuffled. Computes them on the device where the trainer has put the model."""
        dataset = self.data.dataset("train", augmented=self.views > 1)
        views = range(self.views) if self.views > 1 else (None,)
        features = torch.stack([self._features.of(dataset, "train", view) for view in views])
        batch_size = self.data.step_share(sharing.rank()[1]) * (1 if self.model.step_photos is None else _BLOCK)
        order = self.data.order(len(dataset))
        return _loader(FeatureSet(features, dataset.labels), batch_size, order)

    def val_dataloader(self) -> DataLoader[Any]:
        """The features of val, in the order of split.csv, as one batch, as they are small: this process's part."""
        dataset = self.data.dataset("val")
        features = FeatureSet(self._features.of(dataset, "val")[None], dataset.labels)
        return _loader(features, len(dataset), sharing.part(range(len(dataset)), FILLING))

    @property
    def _features(self) -> Features:
        assert self.trainer is not None, "the trainer says where and how precisely to compute"
        return Features(self.data, self.model, str(self.trainer.precision), **self.keeping)  # type: ignore[arg-type]


class FeatureSet(Dataset[tuple[Tensor, Tensor]]):
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
            index == FILLING, FILLING, self.labels[index]
        )


def _loader(features: FeatureSet, batch_size: int, order: EpochSampler | list[int]) -> DataLoader[Any]:
    return DataLoader(features, batch_size, sampler=order, collate_fn=_as_it_is, generator=torch.Generator())


def _as_it_is(batch: Any) -> Any:
    return batch


def _seed(digest: str, view: int) -> int:
    """A view's augmentation belongs to the photo: another split or another run's seed finds the same view."""
    return (int(digest[:14], 16) + view) % 2**62
