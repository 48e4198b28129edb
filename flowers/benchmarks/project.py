"""The same pieces of work, done by this project's own code."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, default_convert

from flowers.benchmarks.baseline import make_batch, training_images
from flowers.data.datamodule import ImageDataModule
from flowers.data.images import read_image
from flowers.features.datamodule import FeatureDataset
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.classifier import ImageClassifier
from flowers.runtime.timing import synchronize


class ProjectBenchmark:
    """Each method does a piece of work as a run does it, and says how many photos that was.

    Args:
        data: has the photos to train on.
        settings: of the trainer, definite; one device is used.
        model: is trained; its backbone as it is now, frozen, is the one that features are computed with.
        optimizer: makes one from parameters.
        sample: the places of the photos that are decoded, augmented, and taken for a step of `batch_size`.
        looped: of those that a pass over the photos takes.
    """

    def __init__(
        self,
        data: ImageDataModule,
        settings: Mapping[str, Any],
        model: ImageClassifier,
        optimizer: Callable[..., Optimizer],
        sample: Sequence[int],
        looped: Sequence[int],
        batch_size: int,
    ) -> None:
        self.data, self.model, self.sample = data, model, sample
        bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        self.settings = {**settings, "devices": 1, "strategy": "auto", **bare}
        self.trainer = Trainer(**self.settings)
        self.device = self.trainer.strategy.root_device
        model.to(self.device).set_stage("head", 1)
        self.frozen = FrozenBackbone(model, str(self.trainer.precision))
        self.paths, _ = training_images(data)
        self.augmented = data.train_dataloader().dataset
        centred = data.dataset("train")
        self.loader = data.batches(centred, looped, self.frozen.batch_size)
        self.frozen_batch = make_batch(centred, sample, self.frozen.batch_size)[0].to(self.device)
        self.batch, self.labels = (part.to(self.device) for part in make_batch(centred, sample, batch_size))
        self.optimizer = optimizer(model.parameters())

    def decoding(self) -> int:
        """Reads the sample."""
        for place in self.sample:
            read_image(self.paths[place])
        return len(self.sample)

    def pipeline(self) -> int:
        """Reads and augments the sample; from the second time on, as in the second epoch."""
        for place in self.sample:
            self.augmented[place, place]
        return len(self.sample)

    def forward(self) -> int:
        """The features of a batch of the size that it is fastest at."""
        return len(self.frozen(self.frozen_batch))

    def head_pass(self) -> int:
        """The features to keep, photos loaded from disk."""
        return sum(len(self.frozen(batch).cpu()) for batch, _ in self.loader)

    def step(self) -> int:
        """A training step of everything on the batch."""
        if self.model.stage != "finetune":
            self.model.set_stage("finetune", 1)
        with self.trainer.precision_plugin.forward_context():
            loss = cross_entropy(self.model(self.batch), self.labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return len(self.batch)

    def head_epoch(self) -> float:
        """Seconds of an epoch of the head stage with its validation, on kept features (the values do not matter)."""
        starts = _EpochStarts()
        trainer = Trainer(**self.settings, max_epochs=3, callbacks=[starts])
        self.model.set_stage("head", 3)
        train, val = (self._features(split) for split in ("train", "val"))
        order = self.data.train_sampler(len(train))
        trainer.fit(
            self.model,
            DataLoader(train, self.data.batch_size, sampler=order, collate_fn=default_convert),
            DataLoader(val, len(val), collate_fn=default_convert),
        )
        self.model.to(self.device)  # Lightning leaves it on the CPU
        return (starts.times[-1] - starts.times[0]) / (len(starts.times) - 1)

    def _features(self, split: str) -> FeatureDataset:
        number = self.data.counts(split).total()
        return FeatureDataset(torch.rand(1, number, self.model.head.in_features), [0] * number)


class _EpochStarts(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(pl_module.device)
        self.times.append(time.perf_counter())
