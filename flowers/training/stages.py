"""The stages of a run: what each freezes and optimizes, and what a batch of it is.

The head stage trains the head on images or on cached features, the fine-tune stage trains the backbone too, on images
or on cached activations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.transforms import v2

from flowers.data.datamodule import ImageDataModule
from flowers.features.activations import ActivationDataModule, split_backbone
from flowers.features.datamodule import FeatureDataModule
from flowers.features.extractor import CACHED
from flowers.models.mixing import Mixing
from flowers.models.network import Network
from flowers.models.parameter_groups import backbone_groups, freeze_first_blocks, frozen_modules
from flowers.runtime.distributed import rank_and_world_size
from flowers.runtime.seeding import PADDING_INDEX
from flowers.settings.schema.training import Features as FeatureSettings

if TYPE_CHECKING:
    from flowers.training.task import FineTuning


class Inputs:
    """What a batch of a stage holds beside labels.

    Attributes:
        step_size: Images per optimizer step if a batch holds several steps; None for one step per batch.
        epoch_steps: Optimizer steps of an epoch if a batch holds several steps; None for one step per batch.
    """

    step_size: int | None = None
    epoch_steps: int | None = None

    def logits(self, network: Network, batch: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        raise NotImplementedError

    def training_logits(
        self, network: Network, batch: Tensor, labels: Tensor, stage_epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C), and the targets of the loss: the labels (B,), or probabilities (B, C)."""
        return self.logits(network, batch), labels


class Images(Inputs):
    """Images, uint8 (B, 3, H, W).

    Args:
        mixing: Mixes normalized training images and their labels; see `flowers.models.mixing`.
        sides: The side in pixels to which the training images of each epoch are resized; empty for no change.
    """

    def __init__(
        self, mixing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None, sides: Sequence[int] = ()
    ) -> None:
        self.mixing, self.sides = mixing, sides

    def logits(self, network: Network, batch: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        return torch.as_tensor(network(batch))

    def training_logits(
        self, network: Network, batch: Tensor, labels: Tensor, stage_epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C) and targets of the images as they are trained on: resized and mixed."""
        if self.sides:
            side = self.sides[stage_epoch]
            batch = torch.as_tensor(v2.functional.resize(batch, [side, side], antialias=True))
        if self.mixing is None:
            return self.logits(network, batch), labels
        pixels, targets = self._mix(network.normalize(batch), labels, len(network.classes))
        return network.logits(network.encode(pixels)), targets

    def _mix(self, pixels: Tensor, labels: Tensor, class_count: int) -> tuple[Tensor, Tensor]:
        """Return mixtures of the images with their targets (B, C). Padding stays."""
        assert self.mixing is not None
        if rank_and_world_size()[1] == 1:  # without padding
            return self.mixing(pixels, labels)
        targets, is_image = pixels.new_zeros(len(labels), class_count), labels != PADDING_INDEX
        if is_image.any():
            pixels[is_image], targets[is_image] = self.mixing(pixels[is_image], labels[is_image])
        return pixels, targets


class Features(Inputs):
    """Cached features (B, F). Only the head works on them.

    Args:
        step_size: Images per optimizer step if a batch holds several steps. Lightning spends more time on a batch than
            a small head needs for a step. Within such a batch, nothing clips or accumulates gradients, and callbacks
            see only the batch.
        epoch_steps: Optimizer steps of an epoch, if a batch holds several.
    """

    def __init__(self, step_size: int | None = None, epoch_steps: int | None = None) -> None:
        self.step_size, self.epoch_steps = step_size, epoch_steps

    def logits(self, network: Network, batch: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        return network.logits(batch)


class Activations(Inputs):
    """Cached outputs (B, …) of the frozen first blocks of the backbone; the last blocks turn them into features.

    Args:
        last_blocks: See `split_backbone`.
    """

    def __init__(self, last_blocks: nn.Module) -> None:
        self.last_blocks = last_blocks

    def logits(self, network: Network, batch: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        # Not a call of the module: it has no hooks, and shares the blocks of the backbone.
        return network.logits(self.last_blocks.forward(batch).float())


@dataclass(frozen=True)
class HeadStage:
    """Train the head. The backbone is frozen: without gradients, and in evaluation mode.

    Attributes:
        epochs: Length of the stage.
        cached_views: Cached views of each training image; 0 computes features anew in each epoch.
        features: The settings of the feature cache.
        mixing: Mixes training images. Cached features are not mixed.
    """

    name: ClassVar[str] = "head"
    rate_setting: ClassVar[str] = "optimizer.lr"  # the learning rate of what the stage is for
    is_averaged: ClassVar[bool] = False  # a batch may hold many steps
    backbone_rate: ClassVar[str] = ""

    epochs: int = 1
    cached_views: int = 0
    features: FeatureSettings = CACHED
    mixing: Mixing | None = None

    @property
    def order_key(self) -> str | None:
        """The setting that decides which images each step of an epoch takes; None if those of the images do."""
        return f"head.cached_views={self.cached_views}" if self.cached_views else None

    def check_processes(self, count: int) -> None:
        """Check that as many processes can train the stage: any number."""

    def freeze(self, network: Network) -> None:
        """Freeze what the stage does not train."""
        network.backbone.requires_grad_(False)

    def set_mode(self, network: Network) -> None:
        """Set training mode, and evaluation mode for what is frozen.

        In training mode, a frozen BatchNorm would still update its statistics, and dropout would still act.
        """
        network.train()
        network.backbone.eval()

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        """Return one group for the head, and an empty one for the backbone."""
        return [_head_group(network), {"name": "backbone", "params": []}]

    def is_tuned(self, group: str) -> bool:
        """Return whether a parameter group has the learning rate `rate_setting`, or is in proportion to it."""
        return group == "head"

    def for_range_test(self, steps: int) -> "HeadStage":
        """Return the stage with as many epochs as a range test has steps."""
        return replace(self, epochs=steps)

    def backbone_sides(self, image_size: int) -> list[int]:
        """Return the sides of the images that the backbone is trained on: none."""
        return []

    def changed_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the network that the stage changes: a resumed run has the others."""
        return {name: value for name, value in weights.items() if not name.startswith("backbone.")}

    def image_inputs(self, network: Network) -> Images:
        """Return what a batch of images is."""
        return Images(self.mixing(len(network.classes)) if self.mixing else None)

    def batches(self, network: Network, data: ImageDataModule, steps: int) -> tuple[Inputs, LightningDataModule]:
        """Return what a batch is, and what loads the batches.

        Args:
            network: The network.
            data: The images.
            steps: The optimizer steps for which a batch of cached features holds images.
        """
        if not self.cached_views:
            return self.image_inputs(network), data
        loader = FeatureDataModule(data, network, self.cached_views, self.features, steps)
        if steps == 1:
            return Features(), loader
        return Features(data.batch_size, math.ceil(data.counts("train").total() / data.batch_size)), loader


@dataclass(frozen=True)
class FinetuneStage:
    """Train the head and the backbone, or its last blocks.

    Attributes:
        epochs: Length of the stage.
        cached_views: Cached views of each training image, as activations of the frozen blocks; 0 computes them anew.
        backbone_lr: Learning rate of the backbone; None uses that of the head.
        layer_decay: See `backbone_groups`.
        norm_weight_decay: See `backbone_groups`.
        depth: The last blocks of the backbone that are trained; None for all of them.
        image_sizes: Sides in pixels of the images that are trained on, one after the other for an equal number of
            epochs; empty for that of the network.
        mixing: Mixes training images.
    """

    name: ClassVar[str] = "finetune"
    rate_setting: ClassVar[str] = "finetune.backbone_lr"
    is_averaged: ClassVar[bool] = True
    order_key: ClassVar[None] = None

    epochs: int = 1
    cached_views: int = 0
    backbone_lr: float | None = None
    layer_decay: float = 1.0
    norm_weight_decay: float | None = None
    depth: int | None = None
    image_sizes: Sequence[int] = ()
    mixing: Mixing | None = None

    @property
    def backbone_rate(self) -> str:
        """The learning rate of the backbone, in words after that of the head."""
        return f", backbone {self.backbone_lr:g}"

    def check_processes(self, count: int) -> None:
        """Check that as many processes can train the stage.

        Raises:
            ValueError: They cannot: cached activations are for one process.
        """
        if self.cached_views and count > 1:
            raise ValueError(
                f"finetune.cached_views={self.cached_views} with {count} processes: expected trainer.devices=1, or "
                "finetune.cached_views=0"
            )

    def freeze(self, network: Network) -> None:
        """Freeze what the stage does not train."""
        network.backbone.requires_grad_(True)
        freeze_first_blocks(network.backbone, self.depth)

    def set_mode(self, network: Network) -> None:
        """Set training mode, and evaluation mode for what is frozen; see `HeadStage`."""
        network.train()
        for module in frozen_modules(network.backbone, self.depth):
            module.eval()

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        """Return one group for the head, and at least one for the backbone."""
        groups = backbone_groups(network.backbone, self.backbone_lr, self.layer_decay, self.norm_weight_decay)
        return [_head_group(network), *groups]

    def is_tuned(self, group: str) -> bool:
        """Return whether a parameter group has the learning rate `rate_setting`, or is in proportion to it."""
        return group != "head"

    def for_range_test(self, steps: int) -> "FinetuneStage":
        """Return the stage with as many epochs as a range test has steps, and images of the first size."""
        return replace(self, epochs=steps, image_sizes=self.image_sizes[:1])

    def backbone_sides(self, image_size: int) -> list[int]:
        """Return the sides of the images that the backbone is trained on, whose own is `image_size`."""
        return [] if self.cached_views else sorted({*self.image_sizes} or {image_size})

    def changed_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the network that the stage changes: all of them."""
        return dict(weights)

    def image_inputs(self, network: Network) -> Images:
        """Return what a batch of images is."""
        count = len(self.image_sizes)
        sides = [self.image_sizes[count * epoch // self.epochs] for epoch in range(self.epochs)] if count else []
        return Images(self.mixing(len(network.classes)) if self.mixing else None, sides)

    def batches(self, network: Network, data: ImageDataModule, steps: int) -> tuple[Inputs, LightningDataModule]:
        """Return what a batch is, and what loads the batches; see `HeadStage`."""
        if not self.cached_views:
            return self.image_inputs(network), data
        assert self.depth is not None
        first_blocks, last_blocks = split_backbone(network.backbone, self.depth)
        return Activations(last_blocks), ActivationDataModule(data, network, self.cached_views, first_blocks)


Stage = HeadStage | FinetuneStage


def train_steps(task: "FineTuning", step_size: int, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Run the optimizer steps of a batch of several, without the hooks of Lightning around each step.

    They take longer than the step. `GlobalStep` counts the steps for Lightning.

    Returns:
        For each image the loss of its step (B,) and its logits (B, C).
    """
    optimizer = cast(Optimizer, task.optimizers(use_pl_optimizer=False))
    head, schedule = task.network.head, cast(LRScheduler, task.lr_schedulers())
    scaler = getattr(task.trainer.precision_plugin, "scaler", None) or GradScaler(enabled=False)
    full_precision, parameters = torch.autocast(task.device.type, enabled=False), list(head.parameters())
    parts = list(zip(torch.split(inputs, step_size), torch.split(labels, step_size), strict=True))
    losses, logits = [], []
    for step_inputs, step_labels in parts:
        for parameter in parameters:
            parameter.grad = None
        with full_precision:
            logits.append(head(step_inputs))
        losses.append(task.loss(logits[-1], step_labels))
        scaler.scale(losses[-1]).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    task.progress.steps += len(losses)
    expanded = [loss.detach().expand(len(part)) for loss, (_, part) in zip(losses, parts, strict=True)]
    return torch.cat(expanded), torch.cat(logits).detach()


def _head_group(network: Network) -> dict[str, Any]:
    return {"name": "head", "params": list(network.head.parameters())}
