"""The same pieces of work, done by the code of this project."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, default_convert

from benchmarks.baseline import make_batch, training_images
from flowers.data.datamodule import ImageDataModule
from flowers.data.images import read_image
from flowers.features.datamodule import FeatureDataset
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.features.int8_backbone import load_int8_backbone
from flowers.runtime.timing import synchronize
from flowers.training.stages import Features, FinetuneStage, HeadStage
from flowers.training.task import FineTuning


class ProjectBenchmark:
    """Does each piece of work as a run does. Each method but `head_epoch` returns how many images it processed.

    Args:
        data: The training images.
        settings: The Trainer's arguments, with each "auto" resolved. One device is used.
        task: Its network is trained. The frozen backbone of the forward pass is a copy of the present one.
        optimizer: Makes an optimizer from parameters.
        sample: The indices of the images that are decoded and augmented, and that make up the batches.
        loop_indices: The indices of the images in one pass of the frozen backbone.
        batch_size: The size of a training step.
        int8: Whether to prepare the backbone in 8 bits, for `int8_forward_pass`.
    """

    def __init__(
        self,
        data: ImageDataModule,
        settings: Mapping[str, Any],
        task: FineTuning,
        optimizer: Callable[..., Optimizer],
        sample: Sequence[int],
        loop_indices: Sequence[int],
        batch_size: int,
        int8: bool = False,
    ) -> None:
        self.data, self.task, self.sample = data, task, sample
        minimal = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        unlimited = {"max_time": None, "profiler": None}
        self.settings = {**settings, "devices": 1, "strategy": "auto", **minimal, **unlimited}
        self.trainer = Trainer(**self.settings)
        self.device = self.trainer.strategy.root_device
        task.to(self.device).start(HeadStage())
        precision = str(self.trainer.precision)
        self.frozen = FrozenBackbone(task.network, precision)
        self.int8 = load_int8_backbone(task.network, precision, "none", lambda: data) if int8 else None
        self.paths, _ = training_images(data)
        self.augmented = data.train_dataloader().dataset
        cropped = data.dataset("train")
        self.loader = data.batches(cropped, loop_indices, self.frozen.batch_size)
        self.frozen_batch = make_batch(cropped, sample, self.frozen.batch_size)[0].to(self.device)
        self.batch, self.labels = (part.to(self.device) for part in make_batch(cropped, sample, batch_size))
        self.optimizer = optimizer(task.parameters())

    def decoding(self) -> int:
        """Decode the sample."""
        for index in self.sample:
            read_image(self.paths[index])
        return len(self.sample)

    def input_pipeline(self) -> int:
        """Decode and augment the sample. Later calls find the decoded images in the cache, as in later epochs."""
        for index in self.sample:
            self.augmented[index, index]
        return len(self.sample)

    def forward_pass(self) -> int:
        """Compute the features of a batch of the size that is fastest."""
        return len(self.frozen(self.frozen_batch))

    def int8_forward_pass(self) -> int:
        """Compute the features of the same batch in 8 bits."""
        assert self.int8 is not None
        return len(self.int8(self.frozen_batch))

    def head_pass(self) -> int:
        """Compute the features to cache, with images read from disk."""
        return sum(len(self.frozen(batch).cpu()) for batch, _ in self.loader)

    def training_step(self) -> int:
        """Train backbone and head on the batch."""
        if self.task.stage != FinetuneStage():
            self.task.start(FinetuneStage())
        with self.trainer.precision_plugin.forward_context():
            loss = cross_entropy(self.task(self.batch), self.labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return len(self.batch)

    def head_epoch(self) -> float:
        """Return the seconds of one epoch of the head stage with validation, on random features."""
        starts = _EpochStarts()
        trainer = Trainer(**self.settings, max_epochs=3, callbacks=[starts])
        self.task.start(HeadStage(epochs=3), Features())
        train, val = (self._features(split) for split in ("train", "val"))
        order = self.data.train_sampler(train.labels.tolist())
        trainer.fit(
            self.task,
            DataLoader(train, self.data.batch_size, sampler=order, collate_fn=default_convert),
            DataLoader(val, len(val), collate_fn=default_convert),
        )
        self.task.to(self.device)  # Lightning leaves it on the CPU
        return (starts.times[-1] - starts.times[0]) / (len(starts.times) - 1)

    def _features(self, split: str) -> FeatureDataset:
        count = self.data.counts(split).total()
        return FeatureDataset(torch.rand(1, count, self.task.network.head.in_features), [0] * count)


class _EpochStarts(Callback):
    """Records when each training epoch starts."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(pl_module.device)
        self.times.append(time.perf_counter())
