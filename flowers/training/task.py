"""Fine-tuning of a network: loss, accuracy, optimizer, schedule, and what a checkpoint holds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from flowers.models.backbones import state_dict_sha256
from flowers.models.checkpoint_format import CHECKPOINT_FORMAT
from flowers.models.losses import LossFunction, cross_entropy
from flowers.models.network import Network
from flowers.runtime.seeding import PADDING_INDEX, epoch_seed, seed_device
from flowers.training.progress import Progress
from flowers.training.schedule_position import Schedule, batches_done, make_schedule, stage_steps
from flowers.training.stages import FinetuneStage, Inputs, Stage, train_steps


class FineTuning(LightningModule):
    """Train a network in stages. Its state dict is that of the network.

    The hyperparameters in a checkpoint are enough to classify with it. What only training needs is not saved: a resumed
    run passes it again.

    Args:
        network: The network.
        optimizer: Makes an optimizer from parameter groups; its `lr` is the learning rate of the head.
        scheduler: Makes a learning-rate schedule; see `flowers.training.lr_schedules`.
        loss: The training loss; see `flowers.models.losses`.
        seed: Seed of the dropout of each epoch.
        config: The whole configuration of the run, as plain Python.
        averaging: Returns the weights that were validated and belong in best.ckpt, or None if they are the current
            ones; see `WeightEMA`.
        stage: The stage that is trained first; see `start`.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer] | None = None,
        scheduler: Schedule | None = None,
        loss: LossFunction = cross_entropy,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        averaging: Callable[[], dict[str, Tensor] | None] | None = None,
        stage: Stage = FinetuneStage(),  # noqa: B008  (it is frozen)
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.scheduler, self.loss = network, optimizer, scheduler, loss
        self.seed, self.config, self.averaging, self.progress = seed, config, averaging, Progress()
        self._resumed: dict[str, Any] | None = None  # the checkpoint of the stage, until the schedule is made
        self._schedule_basis = ""
        # The labels are valid by construction; validating them at each step would wait for the device.
        self.train_accuracy = MulticlassAccuracy(len(network.classes), average="micro", validate_args=False)
        self.val_accuracy = MulticlassAccuracy(len(network.classes), average="micro", validate_args=False)
        # Checking for NaN would wait for the device too. In torchmetrics 1.9, "disable" also ignores weights.
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.register_load_state_dict_pre_hook(_add_network_prefix)  # type: ignore[no-untyped-call]
        self.start(stage)

    def start(self, stage: Stage, inputs: Inputs | None = None) -> None:
        """Begin a stage: freeze what it does not train.

        Args:
            stage: The stage.
            inputs: What a batch is; None for images.
        """
        self.stage, self.inputs = stage, inputs or stage.image_inputs(self.network)
        self.automatic_optimization = self.inputs.step_size is None
        stage.freeze(self.network)
        self.set_mode()

    def set_mode(self) -> None:
        """Set training mode, and evaluation mode for what is frozen."""
        self.train()
        self.stage.set_mode(self.network)

    @property
    def stage_epoch(self) -> int:
        """The index of the current epoch in its stage."""
        return self.current_epoch - ((self.trainer.max_epochs or 1) - self.stage.epochs)

    def end_stage(self) -> int:
        """Record that the stage ends with the current epoch, and return how many it has had."""
        self.progress.ended[self.stage.name] = self.stage_epoch + 1
        return self.stage_epoch + 1

    def forward(self, batch: Tensor) -> Tensor:
        """Return the logits (B, C) in float32 of the inputs of a batch."""
        return self.inputs.logits(self.network, batch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch; of a batch of several steps, the loss of the last step."""
        inputs, labels = batch
        if self.inputs.step_size is not None:
            losses, logits = train_steps(self, self.inputs.step_size, inputs, labels)
            self._log("train", losses, logits, labels)
            return losses[-1]
        logits, targets = self.inputs.training_logits(self.network, inputs, labels, self.stage_epoch)
        if self.trainer.world_size > 1:
            return self._distributed_loss(logits, targets, labels)
        loss = self.loss(logits, targets)
        self._log("train", loss.detach().expand(len(labels)), logits, labels)
        return loss

    def _distributed_loss(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Return a loss whose mean over the processes is the mean over the images of all processes."""
        is_image = labels != PADDING_INDEX
        losses = self.loss(logits[is_image], targets[is_image], reduction="none")
        self._log("train", losses.detach(), logits[is_image], labels[is_image])
        return losses.sum() / self.trainer.strategy.reduce(is_image.float().sum(), reduce_op="mean")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Run an optimizer step, and count it. Lightning calls this only for one step per batch."""
        super().optimizer_step(*args, **kwargs)
        self.progress.steps += 1

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the `logits` (B, C) of a validation batch. Padding is not scored."""
        inputs, labels = batch
        logits, is_image = self(inputs), labels != PADDING_INDEX
        losses = cross_entropy(logits[is_image], labels[is_image], reduction="none")
        self._log("val", losses, logits[is_image], labels[is_image])
        return {"logits": logits}

    def _log(self, split: str, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        mean, accuracy = getattr(self, f"{split}_loss"), getattr(self, f"{split}_accuracy")
        if len(losses):  # in the last step of an epoch, a process may have nothing but padding
            mean.update(losses)
            accuracy.update(logits, labels)
        if split == "val" or self.trainer.is_last_batch:  # logging takes longer than a step on cached features
            self.log(f"{split}/loss", mean, on_step=False, on_epoch=True)
            self.log(f"{split}/accuracy", accuracy, on_step=False, on_epoch=True)

    def _log_x_axis(self) -> None:
        """Log `step`, which the logger connector of Lightning takes as the x-axis, and `epoch`, which it then omits.

        The x-axis is the index of the last step. Float32 is exact up to 16.7 million steps.
        """
        axis = {"step": float(self.progress.steps - 1), "epoch": float(self.current_epoch)}
        self.log_dict(axis, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Make the parameter groups of the stage: one for the head, and at least one for the backbone."""
        assert self.optimizer is not None, "an optimizer is needed to train"
        assert self.scheduler is not None, "a scheduler is needed to train"
        optimizer = self.optimizer(self.stage.parameter_groups(self.network))
        checkpoint, self._resumed = self._resumed, None
        steps = stage_steps(self.stage, self.inputs, self.trainer, self.progress, batches_done(checkpoint))
        schedule, self._schedule_basis = make_schedule(self.scheduler, optimizer, steps, self.config or {}, checkpoint)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def on_train_epoch_start(self) -> None:
        """Seed the dropout of the epoch with seed, epoch and rank, so that a resumed run draws the same."""
        seed_device(epoch_seed(self.seed, self.current_epoch, self.global_rank), self.device.type)
        self.set_mode()

    def on_train_epoch_end(self) -> None:
        """Count the epoch, before checkpoints are written."""
        self.progress.epochs_done = self.current_epoch + 1
        self._log_x_axis()

    def on_validation_epoch_end(self) -> None:
        """Log the x-axis of the validation curves."""
        self._log_x_axis()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of the network, whose names a checkpoint has."""
        return self.network.state_dict(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format, the stage and the progress.

        last.ckpt also gets what the schedule depends on. In the head stage, it leaves out the frozen backbone.
        best.ckpt, which is used without the run's initial weights, is the checkpoint without optimizer states.
        """
        checkpoint["format_version"], checkpoint["stage"] = CHECKPOINT_FORMAT, self.stage.name
        checkpoint["hyper_parameters"] = self.network.hparams | {"seed": self.seed, "config": self.config}
        checkpoint["progress"] = self.progress.to_dict()
        if "optimizer_states" in checkpoint:
            checkpoint["schedule"] = self._schedule_basis
            checkpoint["state_dict"] = self.stage.changed_weights(checkpoint["state_dict"])
        elif self.averaging is not None and (averaged := self.averaging()) is not None:
            checkpoint["state_dict"] = averaged

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the progress, and add the frozen backbone if the checkpoint leaves it out.

        Raises:
            ValueError: The run started from another backbone.
        """
        self.progress, self._resumed = Progress(**checkpoint["progress"]), checkpoint
        if any(name.startswith("backbone.") for name in checkpoint["state_dict"]):
            return
        expected = checkpoint["hyper_parameters"]["weights_digest"]
        if (found := state_dict_sha256(self.network.backbone)) != expected:
            raise ValueError(
                f"this head-stage checkpoint needs the backbone {expected[:8]}…, found {found[:8]}…: resume the run "
                "with the model.weights that it started with; to evaluate or to predict, use best.ckpt"
            )
        checkpoint["state_dict"] |= self.network.backbone.state_dict(prefix="backbone.")


ImageClassifier = FineTuning  # its public name


def _add_network_prefix(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the weights of a network to those of its `FineTuning`, on the way into `load_state_dict`."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[f"{prefix}network.{name.removeprefix(prefix)}"] = state_dict.pop(name)
