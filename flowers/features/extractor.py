"""Extract the features of images with a frozen backbone, or find them in the cache."""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.data.dataset import ImageDataset
from flowers.features.cache import FeatureCache, IndexedFeatures, concat_batches
from flowers.features.frozen_backbone import FrozenBackbone, precision_dtype
from flowers.models.classifier import ImageClassifier
from flowers.runtime.distributed import all_gather_object, broadcast_object, local_slice, rank_and_world_size
from flowers.runtime.logging import progress_bar
from flowers.runtime.seeding import PADDING_INDEX

log = logging.getLogger(__name__)


class FeatureExtractor:
    """The features that a model's backbone, as it stands, has for photos: kept ones where there are, else computed.

    Args:
        data: how photos are transformed and read.
        model: whose backbone is used, on the device where it is.
        precision: a name of Lightning's, such as "bf16-mixed".
        cache: whether they are kept on disk; only for a backbone whose digest is the model's `weights_digest`.
        cache_gb: see `Kept`.
    """

    def __init__(
        self, data: ImageDataModule, model: ImageClassifier, precision: str, cache: bool = True, cache_gb: float = 10.0
    ) -> None:
        self.data, self.model, self.precision = data, model, precision
        self.cache, self.cache_gb = cache, cache_gb

    def of(self, dataset: ImageDataset, name: str, view: int | None = None) -> Tensor:
        """Features (N, F) in the precision of the pass, on the CPU, in the order of `dataset`.

        Args:
            dataset: the photos, augmented where `view` is given.
            name: of the photos, for people.
            view: which of the augmented views; None for the photos as in validation.
        """
        computed = 0

        def compute(places: Sequence[int]) -> Iterator[IndexedFeatures]:
            nonlocal computed
            for batch in self._computed(dataset, name, view, broadcast_object(places)):
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

    def _computed(
        self, dataset: ImageDataset, name: str, view: int | None, places: Sequence[int]
    ) -> Iterator[IndexedFeatures]:
        """The features of photos at some places, in batches; each process computes those of a stretch of the places."""
        if not places:
            return
        frozen = FrozenBackbone(self.model, self.precision)
        part = local_slice(places, PADDING_INDEX)
        keys = [(place, 0 if view is None else _view_seed(dataset.digests[place], view)) for place in part]
        batches = self.data.batches(dataset, keys, frozen.batch_size)
        taken = (part[start : start + frozen.batch_size] for start in range(0, len(part), frozen.batch_size))
        for mine, (photos, _) in zip(taken, progress_bar(batches, f"Features of {name}"), strict=True):
            for batch, features in all_gather_object((mine, frozen(photos).cpu())):
                count = sum(place != PADDING_INDEX for place in batch)  # those that fill up are its last
                yield batch[:count], features[:count]

    def _fetched(
        self, dataset: ImageDataset, view: int | None, compute: Callable[[Sequence[int]], Iterator[IndexedFeatures]]
    ) -> Tensor:
        if not self.cache:
            places, features = concat_batches(compute(range(len(dataset))))
            return features[torch.tensor(places).argsort()]
        if rank_and_world_size()[0] == 0:
            return broadcast_object(FeatureCache(self._recipe(view), self.cache_gb).fetch(dataset.digests, compute))
        deque(compute(()), maxlen=0)  # its part of those that the first process does not find
        return broadcast_object(torch.empty(0))

    def _recipe(self, view: int | None) -> dict[str, str]:
        model, transform = self.model, self.data.eval_transform if view is None else self.data.train_transform
        return {
            "format": "1",
            "backbone": str(model.hparams["weights_digest"]),
            "architecture": json.dumps([model.hparams["architecture"], model.hparams["options"]]),
            "pixels": f"{transform} {self.data.eval_transform} {model.normalise}",
            "view": str(view),
            "precision": f"{precision_dtype(self.precision)} on {model.device.type}",
            "versions": " ".join(version(name) for name in ("torch", "torchvision", "pillow")),
        }


def _view_seed(digest: str, view: int) -> int:
    """A view's augmentation belongs to the photo: another split or another run's seed finds the same view."""
    return (int(digest[:14], 16) + view) % 2**62
