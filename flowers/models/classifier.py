"""The classifier: a backbone that turns an image into features, and a linear head."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from flowers.models.backbones import build_backbone, state_dict_sha256
from flowers.runtime.seeding import PADDING_INDEX, epoch_seed, seeded

Stage = Literal["head", "finetune"]

Schedule = Callable[[Optimizer, int], LRScheduler]  # of the optimizer and the stage's steps, stepped once a step


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageClassifier(LightningModule):
    """Classifies photos: uint8 (B, 3, H, W) to logits (B, C).

    What it takes to use a checkpoint is in its hyperparameters; what it takes to train (weights, optimizer, scheduler)
    is given anew.

    Args:
        architecture, weights, options: see `backbone.build`.
        classes: the classes' names, C of them.
        image_size, resize: pixels; the photos it is meant for are `transforms.centred` so.
        mean, std: of ImageNet's pixels, per channel.
        split_digest: the SHA-256 of the split.csv that it is trained on.
        weights_digest: of the backbone before any training; computed where it is not given.
        config: the whole configuration of the run, plain Python.
        optimizer: makes one from parameter groups; its `lr` is the head's.
        scheduler: see `schedules`.
        backbone_lr: the backbone's learning rate; None for the head's.
        compiled: whether torch.compile makes the backbone's steps.
        seed: of what an epoch draws (dropout).
    """

    def __init__(
        self,
        architecture: str,
        classes: Sequence[str],
        weights: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        image_size: int = 224,
        resize: int = 256,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        split_digest: str = "",
        weights_digest: str | None = None,
        config: Mapping[str, Any] | None = None,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer] | None = None,
        scheduler: Schedule | None = None,
        backbone_lr: float | None = None,
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.optimizer, self.scheduler, self.backbone_lr = optimizer, scheduler, backbone_lr
        self.classes, self.seed = list(classes), seed
        self.normalise = normalize(mean, std)
        self.backbone, width = build_backbone(architecture, weights, options or {})
        self.backbone.to(memory_format=torch.channels_last)  # twice as fast on a CPU with bf16, faster on GPUs too
        weights_digest = weights_digest or state_dict_sha256(self.backbone)
        self.save_hyperparameters(ignore=["weights", "optimizer", "scheduler", "backbone_lr", "compiled"], logger=False)
        if compiled:
            self.backbone.compile()  # in place: the names in checkpoints stay
        with seeded(seed):  # the same head whatever was drawn before: a multirun's later jobs draw no backbone
            self.head = nn.Linear(width, len(classes))
        # Labels are in range by how they are made; to check them each step would wait for the device.
        self.train_accuracy = MulticlassAccuracy(len(classes), average="micro", validate_args=False)
        self.val_accuracy = MulticlassAccuracy(
            len(classes), average="micro", validate_args=False, ignore_index=PADDING_INDEX
        )
        # Checked for NaN they would wait for the device too; unchecked they leave out weights (torchmetrics 1.9).
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.set_stage("finetune", epochs=1)

    def set_stage(self, stage: Stage, epochs: int) -> None:
        """Freezes the backbone for the head stage, or frees it for fine-tuning, for so many epochs."""
        self.stage, self.stage_epochs = stage, epochs
        self.set_steps_per_batch(None)
        self.backbone.requires_grad_(stage == "finetune")
        self._set_mode()

    def set_steps_per_batch(self, photos: int | None) -> None:
        """Makes a training batch a block of several steps, each of so many photos; None for one step a batch.

        Lightning's own work for a step takes longer than a head's on kept features. In a block nothing clips or
        accumulates gradients, and callbacks see the block.
        """
        self.step_photos = photos
        self.automatic_optimization = photos is None

    def features(self, photos: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, F)."""
        features = self.backbone(self.normalise(photos.contiguous(memory_format=torch.channels_last)))
        if isinstance(features, tuple):  # Inception in training adds what its auxiliary classifiers say
            features = features[0]
        return torch.as_tensor(features).float()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C) in float32 of photos (B, 3, H, W), or of their features (B, F) kept from a frozen backbone."""
        features = inputs if inputs.ndim == 2 else self.features(inputs)
        with torch.autocast(self.device.type, enabled=False):  # the head is small: keep its full precision
            logits: Tensor = self.head(features)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy loss of a batch; of a block of steps, the last one's."""
        inputs, labels = batch
        if self.step_photos is None:
            logits = self(inputs)
            if self.trainer.world_size > 1:
                return self._shared_loss(logits, labels)
            loss = cross_entropy(logits, labels)
            self._log("train", loss.detach().expand(len(labels)), logits, labels)
            return loss
        losses, logits = train_steps(self, torch.split(inputs, self.step_photos), torch.split(labels, self.step_photos))
        self._log("train", losses, logits, labels)
        return losses[-1]

    def _shared_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """This process's part of a step's loss: the processes' mean is that over the photos of all of them."""
        is_photo = labels != PADDING_INDEX
        losses = cross_entropy(logits, labels, reduction="none", ignore_index=PADDING_INDEX)
        self._log("train", losses[is_photo].detach(), logits[is_photo], labels[is_photo])
        return losses.sum() / self.trainer.strategy.reduce(is_photo.float().sum(), reduce_op="mean")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The `logits` (B, C) of a batch of validation photos, all scored but what fills it up."""
        inputs, labels = batch
        logits = self(inputs)
        losses = cross_entropy(logits, labels, reduction="none", ignore_index=PADDING_INDEX)
        self._log("val", losses[labels != PADDING_INDEX], logits, labels)
        return {"logits": logits}

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and labels (B,)."""
        inputs, labels = batch
        return self(inputs), labels

    def _log(self, split: str, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        mean, accuracy = getattr(self, f"{split}_loss"), getattr(self, f"{split}_accuracy")
        mean.update(losses)
        accuracy.update(logits, labels)
        if split == "val" or self.trainer.is_last_batch:  # a step on kept features takes less than logging it
            self.log(f"{split}/loss", mean, on_step=False, on_epoch=True)
            self.log(f"{split}/accuracy", accuracy, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        """Each part is a group with its learning rate; in the head stage the backbone's has nothing to walk over."""
        assert self.optimizer is not None, "an optimizer is needed to train"
        assert self.scheduler is not None, "a scheduler is needed to train"
        head = {"name": "head", "params": list(self.head.parameters())}
        trained = self.backbone.parameters() if self.stage == "finetune" else ()
        body: dict[str, Any] = {"name": "backbone", "params": list(trained)}
        if self.backbone_lr is not None:
            body["lr"] = self.backbone_lr
        optimizer = self.optimizer([head, body])
        # Lightning refuses to clip the gradients of what could unscale them itself: fused ones need not, and shall not.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        epoch_steps = self.trainer.estimated_stepping_batches / (self.trainer.max_epochs or 1)
        if self.step_photos is not None:
            photos = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
            epoch_steps = math.ceil(len(photos) / self.step_photos)
        schedule = self.scheduler(optimizer, math.ceil(epoch_steps * self.stage_epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def on_train_epoch_start(self) -> None:
        """Makes what the epoch draws (dropout) a function of seed, epoch and process, resumed or not."""
        torch.manual_seed(epoch_seed(self.seed, self.current_epoch, self.global_rank))
        self._set_mode()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the stage: in the head stage, the backbone is still the one that was loaded."""
        checkpoint["stage"] = self.stage

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the frozen backbone, which last.ckpt leaves out in the head stage. ValueError where this is another."""
        if not any(name.startswith("backbone.") for name in checkpoint["state_dict"]):
            wanted, found = checkpoint["hyper_parameters"]["weights_digest"], state_dict_sha256(self.backbone)
            if found != wanted:
                raise ValueError(
                    f"this checkpoint of the head stage goes with the backbone {wanted[:8]}…, not {found[:8]}…: "
                    "resume the run with the model.weights that it began with; to score or use it, take best.ckpt"
                )
            for name, tensor in self.backbone.state_dict(prefix="backbone.").items():
                checkpoint["state_dict"][name] = tensor

    def _set_mode(self) -> None:
        # In training mode BatchNorm's statistics would drift and dropout would act, gradients or none.
        self.train()
        self.backbone.train(self.stage == "finetune")


def train_steps(model: LightningModule, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Trains `model`, which optimizes manually, a step on each pair of inputs and labels.

    Returns of each photo its step's loss (N,) and its logits (N, C).
    """
    optimizer, schedule = cast(LightningOptimizer, model.optimizers()), cast(LRScheduler, model.lr_schedulers())
    losses, logits = [], []
    for step_inputs, step_labels in zip(inputs, labels, strict=True):
        optimizer.zero_grad()
        logits.append(model(step_inputs))
        losses.append(cross_entropy(logits[-1], step_labels))
        model.manual_backward(losses[-1])
        optimizer.step()
        schedule.step()
    # Lightning takes the block for one step: its loggers count on, and so does a later stage of one step a batch.
    loop = model.trainer.fit_loop.epoch_loop
    loop._batches_that_stepped += len(losses) - 1
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed += len(losses)
    spread = [loss.detach().expand(len(part)) for loss, part in zip(losses, labels, strict=True)]
    return torch.cat(spread), torch.cat(logits).detach()


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """The whole epochs that lie behind a checkpoint."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def load_classifier(path: str | Path) -> ImageClassifier:
    """The model of a checkpoint, on the CPU; no code in the file is run."""
    return ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, its tensors left on disk until they are used; no code in it is run.

    Raises ValueError where the file is missing or is no checkpoint of this project.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if "_instantiator" in checkpoint["hyper_parameters"]:  # the name of a function that Lightning would call
            raise ValueError("it asks for a function to be called")
        checkpoint["hyper_parameters"]["classes"]
    except Exception as error:  # torch.load raises anything from OSError to UnpicklingError on a stranger's bytes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a checkpoint of flowers"
        raise ValueError(f"{path} cannot be read: {reason}") from error
    return dict(checkpoint)


def normalize(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """uint8 (B, 3, H, W) to float32 of about zero mean and unit variance."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
