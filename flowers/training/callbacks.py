"""Lightning callbacks: the first head, learning rates, images, losses, averaged weights."""

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.predictions import Predictions
from flowers.features.datamodule import FeatureDataModule
from flowers.features.extractor import FeatureExtractor
from flowers.features.linear_probe import choose_l2, fit_linear_probe
from flowers.runtime.distributed import broadcast_object
from flowers.training.pictures import log_images, log_predictions, shows_images
from flowers.training.task import FineTuning

log = logging.getLogger(__name__)


class GlobalStep(Callback):
    """Set both step counters of Lightning to that of the model.

    Lightning counts the steps of automatic and of manual optimization apart, and `trainer.global_step` is that of the
    current kind. A stage of one kind may follow one of the other, and ModelCheckpoint does not save twice at the same
    step: it must grow through all stages. `tests/unit/training/test_lightning_contract.py` checks these attributes.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the counters, after a checkpoint has been restored."""
        loop, steps = trainer.fit_loop.epoch_loop, cast(FineTuning, pl_module).progress.steps
        loop.automatic_optimization.optim_progress.optimizer.step.total.completed = steps
        loop.manual_optimization.optim_step_progress.total.completed = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the steps of a batch that holds several: they bypass the optimizer of Lightning, which counts."""
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        new = cast(FineTuning, pl_module).progress.steps - progress.total.completed
        for counter in (progress.total, progress.current) if not pl_module.automatic_optimization else ():
            counter.ready += new
            counter.completed += new


class ProbeHead(Callback):
    """Start with the best linear head for the features of the training images; see `fit_linear_probe`.

    The strength of its penalty is the one with the best loss in a cross-validation of the training images. With
    `data.balance`, both losses are weighted: `sampler` has the same loss in the mean. A resumed run has its head.

    Args:
        data: The images.
        features: The settings of the feature cache.
    """

    def __init__(self, data: ImageDataModule, features: Mapping[str, Any]) -> None:
        self.data, self.features = data, dict(features)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the weights of the head if the run begins here. The model is on its device by now."""
        task = cast(FineTuning, pl_module)
        if trainer.ckpt_path is not None or task.progress.steps:
            return
        model = task.network
        dataset = self.data.dataset("train")
        model.backbone.eval()
        extractor = FeatureExtractor(self.data, model, str(trainer.precision), **self.features)
        features, labels = extractor.extract(dataset, "train"), torch.tensor(dataset.labels)
        start, weights = time.perf_counter(), self.data.class_weights()
        class_weights = None if weights is None else torch.tensor(weights)
        l2 = choose_l2(features, labels, len(model.classes), task.seed, class_weights=class_weights)
        found = fit_linear_probe(features, labels, len(model.classes), l2, class_weights=class_weights)
        probe = broadcast_object(found)
        if extractor.int8 is not None:
            extractor.int8.check_agreement(lambda asked: probe.logits(asked).argmax(1))
        with torch.no_grad():
            model.head.weight.copy_(probe.weight)
            model.head.bias.copy_(probe.bias)
        log.info("head: the best linear one, with l2 = %g (%.1f s)", l2, time.perf_counter() - start)


class LearningRateLogger(Callback):
    """Log the learning rate of each parameter group as `lr/<name>`.

    It is logged at the start of each epoch, and every `trainer.log_every_n_steps` steps.

    Lightning has LearningRateMonitor, whose x-axis counts batches and not steps.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the rates of the batch's first step."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        steps = cast(FineTuning, pl_module).progress.steps
        # A batch of cached features holds several steps, so that few batches begin at a multiple of `every`.
        if every and (batch_idx == 0 or (steps + 1) % every == 0):
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            for logger in trainer.loggers:
                logger.log_metrics({f"lr/{group['name']}": group["lr"] for group in groups}, step=steps)


class StopOnNonFiniteLoss(Callback):
    """Stop the run if a loss is infinite or NaN, before a checkpoint holds the weights that caused it.

    Args:
        every: Steps between two checks of the training loss, each of which waits for the device. The validation loss
            is checked in each epoch.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raise ValueError if the loss of the batch is not finite."""
        if trainer.is_last_batch or batch_idx % self.every == 0:
            _check_finite("training", outputs["loss"], trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ValueError if the validation loss is not finite. Checkpoints are written later."""
        if "val/loss" in trainer.callback_metrics:
            _check_finite("validation", trainer.callback_metrics["val/loss"], trainer.current_epoch)


def _check_finite(name: str, loss: torch.Tensor, epoch: int) -> None:
    if not torch.isfinite(loss):
        raise ValueError(
            f"the {name} loss became {loss.item()} in epoch {epoch + 1}: "
            "try a smaller optimizer.lr, trainer.gradient_clip_val=1, or trainer.precision=32-true"
        )


class WeightEMA(WeightAveraging):
    """Validate and keep an exponential moving average of the weights in the fine-tune stage.

    After n steps, the decay is min(`decay`, (1 + n) / (10 + n)), as in TensorFlow: without this warm-up, an average of
    a few hundred steps would mostly be the weights before training.

    best.ckpt then holds the averaged weights, whose score it bears; the callback of Lightning adds them only to
    checkpoints that are not weights-only. last.ckpt holds both.

    Args:
        decay: From 0 to below 1. The average covers about the last 1 / (1 - `decay`) steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(multi_avg_fn=self._update)
        self.decay = decay

    def _update(self, averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        steps = int(count)
        decay = min(self.decay, (1 + steps) / (10 + steps))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:  # counters of BatchNorm
            torch._foreach_copy_(averaged, current)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start an average, except in the head stage: there, a batch holds many steps."""
        self._average_model = None
        if cast(FineTuning, pl_module).stage.is_averaged:
            super().setup(trainer, pl_module, stage)

    def averaged_weights(self) -> dict[str, Tensor] | None:
        """Return the averaged weights, by their names in the network; None in the head stage."""
        return None if self._average_model is None else self._average_model.module.state_dict()

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to update the average: after each step of the fine-tune stage."""
        return step_idx is not None and self._average_model is not None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        if self._average_model is not None:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the current weights beside the averaged ones."""
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both."""
        if self._average_model is not None and "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class ImageLogger(Callback):
    """Log training images at the start, and during validation the confusion matrix and images.

    The validation images are the most confident mistakes and the least confident predictions. Without this callback,
    the PROJECTOR tab of TensorBoard is empty too.

    Args:
        every_seconds: Shortest time between two validations that are logged: drawing takes longer than an epoch on
            cached features. The last epoch of each stage is always logged, unless the stage ends early.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._last = time.monotonic()
        self._outputs: list[tuple[Tensor, Tensor]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log images as the network sees them, once per run."""
        if trainer.current_epoch == 0:
            log_images(trainer, image_datamodule(trainer))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this epoch is logged. No epoch of several processes is: each has a part of the images."""
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        is_due = is_last or time.monotonic() - self._last >= self.every_seconds
        self._outputs = [] if is_due and trainer.world_size == 1 and shows_images(trainer) else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the logits (B, C) and labels (B,)."""
        if self._outputs is not None:
            self._outputs.append((outputs["logits"].double().cpu(), batch[1].cpu()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the confusion matrix and the images, at the step of the curves."""
        if not self._outputs:
            return
        data = image_datamodule(trainer)
        logits, labels = (torch.cat(parts) for parts in zip(*self._outputs, strict=True))
        records = [record for record in data.records if record.split == "val"][: len(labels)]
        predictions = Predictions([record.path for record in records], labels, logits, data.classes)
        log_predictions(trainer, predictions, data.source, step=cast(FineTuning, pl_module).progress.steps - 1)
        self._outputs, self._last = None, time.monotonic()


def image_datamodule(trainer: Trainer) -> ImageDataModule:
    """Return the images of a run, also while it trains on their features."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    return datamodule.data if isinstance(datamodule, FeatureDataModule) else datamodule
