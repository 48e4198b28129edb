"""Extract the features of images with a frozen backbone, or find them in the cache."""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from flowers.data.dataset import ImageDataset
from flowers.data.images import READ_VERSION
from flowers.features.cache import FeatureCache, IndexedFeatures, concat_batches
from flowers.features.frozen_backbone import PASS_VERSION, FrozenBackbone, precision_dtype
from flowers.features.int8_backbone import Answers, Int8Backbone, check_int8, load_int8_backbone
from flowers.models.backbones import timm_name
from flowers.models.network import Network, predict_logits
from flowers.runtime.distributed import all_gather_object, broadcast_object, local_slice, rank_and_world_size
from flowers.runtime.hardware import resolve_device_and_precision
from flowers.runtime.logging import progress_bar
from flowers.runtime.seeding import PADDING_INDEX
from flowers.settings.schema.training import Features, Trainer
from flowers.settings.schema.values import DeviceChoice

if TYPE_CHECKING:
    from flowers.data.datamodule import ImageDataModule  # imports Lightning

log = logging.getLogger(__name__)

CACHED = Features(cache=True, cache_gb=10.0, engine="pytorch")
UNCACHED = CACHED.replace(cache=False)


@dataclass(frozen=True)
class Extraction:
    """How a program computes features, and whether it keeps them.

    Attributes:
        device: What computes them.
        precision: A Lightning precision, such as "bf16-mixed".
        settings: The cache, which holds only features of a backbone that was never trained, and the engine.
        tta: See `FrozenBackbone`.

    Raises:
        ValueError: See `check_int8`.
    """

    device: torch.device
    precision: str
    settings: Features = CACHED
    tta: str = "none"

    def __post_init__(self) -> None:
        if self.settings.engine == "int8":
            check_int8(self.device.type)

    @classmethod
    def requested(cls, choice: DeviceChoice, cache_gb: float, trained: Trainer | None = None) -> Self:
        """Return what settings ask for; what they leave open is as a run was trained, or else what suits the machine.

        Raises:
            ValueError: This machine has no such device.
        """
        accelerator = choice.accelerator or (trained.accelerator if trained else None)
        precision = choice.precision or (trained.precision if trained else None)
        return cls(*resolve_device_and_precision(accelerator, precision), CACHED.replace(cache_gb=cache_gb))


def extract_features(
    model: Network,
    data: "ImageDataModule",
    dataset: ImageDataset,
    name: str,
    how: Extraction,
    open_run: "Callable[[], ImageDataModule] | None" = None,
) -> Tensor:
    """Return a model's features (N, F) of images, on the CPU.

    One device computes them, with the backbone frozen as in the head stage.

    Args:
        model: Its backbone computes the features. The model stays in evaluation mode, on the device.
        data: Loads the images.
        dataset: The images, transformed as for validation.
        name: The name of the images in log lines.
        how: The device, the precision and so on.
        open_run: See `FeatureExtractor.open_data`.
    """
    model.eval().to(how.device)
    settings = how.settings.replace(cache=how.settings.cache and model.has_untrained_backbone())
    answers = lambda features: predict_logits(model, features).argmax(1)  # noqa: E731
    extractor = FeatureExtractor(data, model, how.precision, settings, how.tta, open_data=open_run, answers=answers)
    return extractor.extract(dataset, name)


def cache_key(
    data: "ImageDataModule", model: Network, precision: str, view: int | None, tta: str = "none"
) -> dict[str, str]:
    """Return all settings, except the image itself, that the features of an image depend on.

    The code that they depend on has versions: READ_VERSION, PASS_VERSION, and, among the transform settings,
    TRANSFORM_VERSION.
    """
    packages = ["torch", "torchvision", "pillow"]
    if timm_name(model.hparams["architecture"]) is not None:
        packages += ["timm"]
    return {
        "format": "3",
        "code": json.dumps({"read": READ_VERSION, "pass": PASS_VERSION}),
        "backbone": str(model.hparams["weights_digest"]),
        "architecture": json.dumps([model.hparams["architecture"], model.hparams["options"]]),
        "transform": json.dumps(data.transform_settings(augmented=view is not None), sort_keys=True),
        "normalize": json.dumps([model.preprocessing.mean, model.preprocessing.std]),
        "view": str(view) if tta == "none" else f"{view} {tta}",
        "precision": f"{precision_dtype(precision)} on {model.device.type}",
        "versions": " ".join(version(name) for name in packages),
    }


class FeatureExtractor:
    """Extract features with the backbone of a model, as it is at the first use, or find them in the cache.

    Args:
        data: Reads and transforms the images.
        model: The model whose backbone is used, on its current device.
        precision: A Lightning precision, such as "bf16-mixed".
        settings: The cache, for which the backbone must match the `weights_digest` of the model, and the engine.
        tta: See `FrozenBackbone`.
        network: See `FrozenBackbone`; the cache on disk holds only features of the whole backbone.
        open_data: Returns the images of the run for `load_int8_backbone`; None if they are `data`.
        answers: See `Int8Backbone.check_agreement`, which is called first. None if the caller does so, once it has
            the features to train a head on.

    Raises:
        ValueError: See `load_int8_backbone` and `Int8Backbone.check_agreement`.
    """

    def __init__(
        self,
        data: "ImageDataModule",
        model: Network,
        precision: str,
        settings: Features = CACHED,
        tta: str = "none",
        network: nn.Module | None = None,
        open_data: "Callable[[], ImageDataModule] | None" = None,
        answers: Answers | None = None,
    ) -> None:
        self.data, self.model, self.precision, self.tta, self.network = data, model, precision, tta, network
        self.settings = settings
        self.int8: Int8Backbone | None = None
        if settings.engine == "int8":
            self.int8 = load_int8_backbone(model, precision, tta, open_data or (lambda: data))
            if answers is not None:
                self.int8.check_agreement(answers)

    def extract(self, dataset: ImageDataset, name: str, view: int | None = None) -> Tensor:
        """Return features (N, F) on the CPU, in the precision of the pass and the order of `dataset`.

        Args:
            dataset: The images; augmented if `view` is given.
            name: The name of the images in messages, such as "train".
            view: The number of the augmented view, or None for images as in validation.
        """
        computed = 0

        def compute(indices: Sequence[int] | None) -> Iterator[IndexedFeatures]:
            nonlocal computed
            while (asked := broadcast_object(indices)) is None:  # rank 0 waits for another run: see _fetch
                pass
            for batch in self._compute(dataset, name, view, asked):
                computed += len(batch[0])
                yield batch

        start = time.perf_counter()
        features = self._fetch(dataset, view, compute)
        seconds = time.perf_counter() - start
        if computed:
            rate = computed / seconds
            log.info("%s: computed features of %d of %d images in %.1f s (%.0f images/s)",
                     name, computed, len(dataset), seconds, rate)  # fmt: skip
        else:
            log.info("%s: found features of all %d images in the cache in %.1f s", name, len(dataset), seconds)
        return features

    @cached_property
    def _frozen(self) -> FrozenBackbone:
        return FrozenBackbone(self.model, self.precision, self.tta, self.network)

    def _compute(
        self, dataset: ImageDataset, name: str, view: int | None, indices: Sequence[int]
    ) -> Iterator[IndexedFeatures]:
        """Yield features of the images at some indices, in batches. Each process computes a slice of the indices."""
        if not indices:
            return
        frozen = self.int8 or self._frozen
        local = local_slice(indices, PADDING_INDEX)
        keys = [(index, 0 if view is None else _view_seed(dataset.digests[index], view)) for index in local]
        batches = self.data.batches(dataset, keys, frozen.batch_size)
        chunks = (local[start : start + frozen.batch_size] for start in range(0, len(local), frozen.batch_size))
        for chunk, (images, _) in zip(chunks, progress_bar(batches, f"Features of {name}"), strict=True):
            for batch, features in all_gather_object((chunk, frozen(images).cpu())):
                count = sum(index != PADDING_INDEX for index in batch)  # padding is at the end
                yield batch[:count], features[:count]

    def _fetch(
        self,
        dataset: ImageDataset,
        view: int | None,
        compute: Callable[[Sequence[int] | None], Iterator[IndexedFeatures]],
    ) -> Tensor:
        if not self.settings.cache:
            indices, features = concat_batches(compute(range(len(dataset))))
            return features[torch.tensor(indices).argsort()]
        if rank_and_world_size()[0] == 0:
            key = cache_key(self.data, self.model, self.precision, view, self.tta)
            if self.int8 is not None:
                key["precision"] = f"int8 {self.int8.key}"
            cache = FeatureCache(key, self.model.head.in_features, self.settings.cache_gb)
            # While rank 0 waits for a lock, it tells the others so: a collective that waits for long times out.
            return broadcast_object(cache.fetch(dataset.digests, compute, lambda: broadcast_object(None)))
        deque(compute(None), maxlen=0)  # compute a slice of what rank 0 does not find in the cache
        return broadcast_object(torch.empty(0))


def _view_seed(digest: str, view: int) -> int:
    """Seed a view by the image, so that the cache holds it for every split and every seed of a run."""
    return (int(digest[:14], 16) + view) % 2**62
