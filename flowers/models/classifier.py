"""The classifier: a backbone that turns an image into features, and a linear head."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from flowers.models.backbones import (
    backbone_shapes,
    build_backbone,
    check_registered,
    is_finite,
    registering_package,
    state_dict_sha256,
    weights_problem,
)
from flowers.models.checkpoint_format import (
    CHECKPOINT_FORMAT,
    check_checkpoint,
    check_hyperparameters,
    check_pickle,
    check_run_config,
    upgrade_checkpoint,
)
from flowers.models.cuda_graph import CudaGraph
from flowers.models.losses import LossFunction, cross_entropy
from flowers.models.mixing import Mixing
from flowers.models.parameter_groups import backbone_groups, freeze_first_blocks, frozen_modules
from flowers.runtime.machine_errors import machine_error_text
from flowers.runtime.seeding import PADDING_INDEX, epoch_seed, seeded
from flowers.settings.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from flowers.settings.schema.run_files import Hyperparameters

Stage = Literal["head", "finetune"]

Schedule = Callable[[Optimizer, int], LRScheduler]  # from the optimizer and the steps of the stage; stepped every step

# The hyperparameters of a checkpoint: what `ImageClassifier` is built from.
_SAVED_HPARAMS = set(Hyperparameters.model_fields) - {"package"}


def normalize(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """Return a transform of uint8 (B, 3, H, W) to float32 of about zero mean and unit variance."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


def read_checkpoint(path: str | Path, mmap: bool = True, is_run: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint in today's format, without running code in it.

    Args:
        path: The checkpoint.
        mmap: Leave the tensors on disk until they are used.
        is_run: Whether the configuration of a run must be in it, which is then checked.

    Raises:
        ValueError: The file is missing, is not a checkpoint of this project, is of a later format, has
            hyperparameters that are unknown or out of range, or a network that no package registers.
    """
    try:
        check_pickle(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        check_checkpoint(checkpoint if isinstance(checkpoint, dict) else {})
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # on arbitrary bytes, torch.load raises anything from OSError to UnpicklingError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a checkpoint of flowers"
        raise ValueError(f"{path} cannot be read: {machine_error_text(error) or reason}") from error
    checkpoint["hyper_parameters"] = check_hyperparameters(path, checkpoint["hyper_parameters"])
    try:
        upgraded = upgrade_checkpoint(checkpoint)
        assert all(isinstance(value, Tensor) for value in upgraded["state_dict"].values())
        assert all(type(upgraded["progress"][key]) is int for key in ("epochs_done", "steps"))
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} cannot be read: not a checkpoint of flowers") from error
    check_registered(path, checkpoint["hyper_parameters"])
    if is_run or checkpoint["hyper_parameters"].get("config"):
        check_run_config(path, upgraded["hyper_parameters"]["config"])
    return upgraded


def load_classifier(path: str | Path) -> "ImageClassifier":
    """Return the model of a checkpoint, on the CPU.

    It is built from plain values, and not by `load_from_checkpoint`: Lightning before 2.6.6 calls a function that the
    hyperparameters name.

    Raises:
        ValueError: See `read_checkpoint`; or the weights are incomplete, not finite, or do not fit the hyperparameters.
    """
    checkpoint = read_checkpoint(path)
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    if not any(name.startswith("backbone.") for name in state):
        raise ValueError(
            f"{path}: this head-stage checkpoint needs the backbone that the run started from: resume the run, or use "
            "best.ckpt"
        )
    try:
        check_weights(hparams["architecture"], hparams.get("options") or {}, len(hparams["classes"]), state)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    model = ImageClassifier(**{key: value for key, value in hparams.items() if key != "package"})
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(state)
    return model


def check_weights(architecture: str, options: Mapping[str, Any], class_count: int, state: Mapping[str, Tensor]) -> None:
    """Check that weights are complete and finite and fit a classifier, before that is built.

    Args:
        architecture: See `build_backbone`.
        options: See `build_backbone`.
        class_count: The number of classes.
        state: The weights by the names of `ImageClassifier`.

    Raises:
        ValueError: They are not.
    """
    shapes, width = backbone_shapes(architecture, options, state)
    expected = {f"backbone.{name}": shape for name, shape in shapes.items()}
    expected |= {"head.weight": torch.Size([class_count, width]), "head.bias": torch.Size([class_count])}
    if problem := weights_problem(expected, {name: value.shape for name, value in state.items()}):
        raise ValueError(f"the weights do not fit {architecture}: {problem}")
    for name, value in state.items():
        # A view may repeat a few numbers any number of times.
        is_whole = value.layout is torch.strided and value.untyped_storage().nbytes() >= value.nbytes
        if not is_whole or not is_finite(value):
            raise ValueError(f"some numbers in its weights {name} are infinite or missing: train the run again")


class ImageClassifier(LightningModule):
    """Classify images: uint8 (B, 3, H, W) to logits (B, C).

    The hyperparameters in a checkpoint are enough to classify with it. What only training needs (`weights`, and all
    from `optimizer` on but `seed`) is not saved: a resumed run passes it again.

    Args:
        architecture: See `build_backbone`.
        classes: The names of the C classes.
        weights: See `build_backbone`.
        options: See `build_backbone`.
        image_size: Side of the input images in pixels.
        resize: Shorter side in pixels to which `eval_transform` resizes before it crops the center.
        interpolation: Of that resizing: "bilinear" or "bicubic".
        mean: Mean of the pixels of each channel, for normalization.
        std: Standard deviation of the pixels of each channel.
        split_digest: SHA-256 of the split.csv of the training data.
        weights_digest: SHA-256 of the backbone before training; None computes it.
        config: The whole configuration of the run, as plain Python.
        optimizer: Makes an optimizer from parameter groups; its `lr` is the learning rate of the head.
        scheduler: Makes a learning-rate schedule; see `flowers.training.lr_schedules`.
        backbone_lr: Learning rate of the backbone; None uses that of the head.
        compiled: Compile the backbone with torch.compile.
        seed: Seed of the head's initial weights, and of the dropout of each epoch.
        loss: The training loss; see `flowers.models.losses`.
        mixing: Mixes training images; see `flowers.models.mixing`. Cached features are not mixed.
        layer_decay: See `backbone_groups`.
        norm_weight_decay: See `backbone_groups`.
        depth: The last blocks of the backbone that the fine-tune stage trains; None for all of them.
        train_sizes: Sides in pixels of the images that the fine-tune stage trains on, one after the other for an equal
            number of epochs; None for `image_size`.

    Attributes:
        steps: Optimizer steps so far, over all stages and sessions of the run.
        epochs_done: Finished epochs so far, likewise.
        ended: The epochs of each stage that ended early; see `StageEarlyStopping`.
        averaged_weights: Returns the weights that were validated and belong in best.ckpt, if they are not the current
            ones; see `WeightEMA`.
        last_blocks: Turns cached activations into features, while the fine-tune stage trains on them.
        graphs: CUDA graphs of the backbone, which replace it for the inputs that they fit; see `GraphTraining`.
    """

    averaged_weights: Callable[[], dict[str, Tensor]] | None = None
    last_blocks: Callable[[Tensor], Tensor] | None = None
    graphs: Sequence[CudaGraph] = ()

    def __init__(
        self,
        architecture: str,
        classes: Sequence[str],
        weights: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        image_size: int = 224,
        resize: int = 256,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
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
        loss: LossFunction = cross_entropy,
        mixing: Mixing | None = None,
        layer_decay: float = 1.0,
        norm_weight_decay: float | None = None,
        depth: int | None = None,
        train_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.mixing = loss, mixing(len(classes)) if mixing else None
        self.optimizer, self.scheduler, self.backbone_lr = optimizer, scheduler, backbone_lr
        self.layer_decay, self.norm_weight_decay = layer_decay, norm_weight_decay
        self.depth, self.train_sizes = depth, list(train_sizes or ())
        self.classes, self.seed = list(classes), seed
        self.steps = self.epochs_done = 0
        self.ended: dict[str, int] = {}
        self.normalize = normalize(mean, std)
        self.backbone, width = build_backbone(architecture, weights, options or {})
        self.backbone.to(memory_format=torch.channels_last)  # twice as fast on a CPU with bf16, faster on GPUs too
        weights_digest = weights_digest or state_dict_sha256(self.backbone)
        self.save_hyperparameters(*sorted(_SAVED_HPARAMS), logger=False)
        if package := registering_package(architecture):
            self.hparams["package"] = package
        if compiled:
            self.backbone.compile()  # in place: the names in checkpoints do not change
        with seeded(seed):  # the head must not depend on earlier draws: the later jobs of a multirun draw no backbone
            self.head = nn.Linear(width, len(classes))
        # The labels are valid by construction; validating them at each step would wait for the device.
        self.train_accuracy = MulticlassAccuracy(len(classes), average="micro", validate_args=False)
        self.val_accuracy = MulticlassAccuracy(len(classes), average="micro", validate_args=False)
        # Checking for NaN would wait for the device too. In torchmetrics 1.9, "disable" also ignores weights.
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.set_stage("finetune", epochs=1)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for the network."""
        return Preprocessing.from_dict(self.hparams)

    def set_stage(
        self, stage: Stage, epochs: int, step_size: int | None = None, total_steps: int | None = None
    ) -> None:
        """Freeze the backbone for the head stage, or unfreeze it for fine-tuning.

        Args:
            stage: The stage that is trained next.
            epochs: Length of the stage.
            step_size: Images per optimizer step if a batch holds several steps; None for one step per batch. Lightning
                spends more time on a batch than a small head needs for a step. Within such a batch, nothing clips or
                accumulates gradients, and callbacks see only the batch.
            total_steps: Optimizer steps of the stage; None uses the estimate of the Trainer, for one step per batch.
        """
        self.stage, self.stage_epochs, self.step_size, self.total_steps = stage, epochs, step_size, total_steps
        self.automatic_optimization = step_size is None
        self.backbone.requires_grad_(stage == "finetune")
        if stage == "finetune":
            freeze_first_blocks(self.backbone, self.depth)
        self.set_mode()

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, F) in float32 of images (B, 3, H, W): uint8, or normalized float.

        With `last_blocks`, float inputs are activations.
        """
        if self.last_blocks is not None and images.is_floating_point():
            return self.last_blocks(images).float()
        images = images.contiguous(memory_format=torch.channels_last)
        pixels = images if images.is_floating_point() else self.normalize(images)
        network = next((graph for graph in self.graphs if graph.fits(pixels)), self.backbone)
        features = network(pixels)
        if isinstance(features, tuple):  # in training, Inception adds the outputs of its auxiliary classifiers
            features = features[0]
        return torch.as_tensor(features).float()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, C) in float32 of images (B, 3, H, W), cached features (B, F) or activations."""
        features = inputs if inputs.ndim == 2 and self.last_blocks is None else self.features(inputs)
        with torch.autocast(self.device.type, enabled=False):  # the head is small: keep full precision
            logits: Tensor = self.head(features)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch; of a batch of several steps, the loss of the last step."""
        inputs, labels = batch
        if self.step_size is None:
            inputs, targets = self._mix(self._resize(inputs), labels) if inputs.ndim == 4 else batch
            logits = self(inputs)
            if self.trainer.world_size > 1:
                return self._distributed_loss(logits, targets, labels)
            loss = self.loss(logits, targets)
            self._log("train", loss.detach().expand(len(labels)), logits, labels)
            return loss
        losses, logits = self._train_steps(torch.split(inputs, self.step_size), torch.split(labels, self.step_size))
        self._log("train", losses, logits, labels)
        return losses[-1]

    def _resize(self, images: Tensor) -> Tensor:
        """Resize training images, uint8 (B, 3, H, W), to the side that `train_sizes` has for the epoch."""
        if self.stage != "finetune" or not self.train_sizes:
            return images
        stage_epoch = self.current_epoch - ((self.trainer.max_epochs or 1) - self.stage_epochs)
        side = self.train_sizes[len(self.train_sizes) * stage_epoch // self.stage_epochs]
        return torch.as_tensor(v2.functional.resize(images, [side, side], antialias=True))

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixtures of the images with their targets (B, C); without mixing, the arguments. Padding stays."""
        if self.mixing is None:
            return images, labels
        pixels = self.normalize(images)
        if self.trainer.world_size == 1:  # without padding
            return self.mixing(pixels, labels)
        targets, is_image = pixels.new_zeros(len(labels), len(self.classes)), labels != PADDING_INDEX
        if is_image.any():
            pixels[is_image], targets[is_image] = self.mixing(pixels[is_image], labels[is_image])
        return pixels, targets

    def _distributed_loss(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Return a loss whose mean over the processes is the mean over the images of all processes."""
        is_image = labels != PADDING_INDEX
        losses = self.loss(logits[is_image], targets[is_image], reduction="none")
        self._log("train", losses.detach(), logits[is_image], labels[is_image])
        return losses.sum() / self.trainer.strategy.reduce(is_image.float().sum(), reduce_op="mean")

    def _train_steps(self, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Run one optimizer step on each pair of features and labels, without the hooks of Lightning around each step.

        They take longer than the step. `GlobalStep` counts the steps for Lightning.

        Returns:
            For each image the loss of its step (B,) and its logits (B, C).
        """
        optimizer = cast(Optimizer, self.optimizers(use_pl_optimizer=False))
        schedule, parameters = cast(LRScheduler, self.lr_schedulers()), list(self.head.parameters())
        scaler = getattr(self.trainer.precision_plugin, "scaler", None) or GradScaler(enabled=False)
        full_precision = torch.autocast(self.device.type, enabled=False)
        losses, logits = [], []
        for step_inputs, step_labels in zip(inputs, labels, strict=True):
            for parameter in parameters:
                parameter.grad = None
            with full_precision:
                logits.append(self.head(step_inputs))
            losses.append(self.loss(logits[-1], step_labels))
            scaler.scale(losses[-1]).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        self.steps += len(losses)
        expanded = [loss.detach().expand(len(part)) for loss, part in zip(losses, labels, strict=True)]
        return torch.cat(expanded), torch.cat(logits).detach()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Run an optimizer step, and count it. Lightning calls this only for one step per batch."""
        super().optimizer_step(*args, **kwargs)
        self.steps += 1

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
        axis = {"step": float(self.steps - 1), "epoch": float(self.current_epoch)}
        self.log_dict(axis, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Make one parameter group for the head and at least one for the backbone, empty in the head stage."""
        assert self.optimizer is not None, "an optimizer is needed to train"
        assert self.scheduler is not None, "a scheduler is needed to train"
        head = {"name": "head", "params": list(self.head.parameters())}
        backbone: list[dict[str, Any]] = [{"name": "backbone", "params": []}]
        if self.stage == "finetune":
            backbone = backbone_groups(self.backbone, self.backbone_lr, self.layer_decay, self.norm_weight_decay)
        optimizer = self.optimizer([head, *backbone])
        total_steps = self.total_steps
        if total_steps is None:
            total_steps = self._stage_steps()
        schedule = self.scheduler(optimizer, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def _stage_steps(self) -> int:
        """Return the optimizer steps of the stage, fewer if `trainer.max_steps` ends the run inside of it."""
        epochs, limit = self.trainer.max_epochs or 1, self.trainer.max_steps
        if limit == -1:
            return math.ceil(self.trainer.estimated_stepping_batches / epochs * self.stage_epochs)
        _ = self.trainer.estimated_stepping_batches  # loads the data, so that the batches are known
        epoch_steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        steps_before = (epochs - self.stage_epochs) * epoch_steps
        return max(1, min(epoch_steps * self.stage_epochs, limit - steps_before))

    def on_train_epoch_start(self) -> None:
        """Seed the dropout of the epoch with seed, epoch and rank, so that a resumed run draws the same."""
        torch.manual_seed(epoch_seed(self.seed, self.current_epoch, self.global_rank))
        self.set_mode()

    def on_train_epoch_end(self) -> None:
        """Count the epoch, before checkpoints are written."""
        self.epochs_done = self.current_epoch + 1
        self._log_x_axis()

    def on_validation_epoch_end(self) -> None:
        """Log the x-axis of the validation curves."""
        self._log_x_axis()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format, the stage and the progress. In the head stage, leave the frozen backbone out of last.ckpt.

        best.ckpt, which is used without the run's initial weights, is the checkpoint without optimizer states.
        """
        checkpoint["format_version"] = CHECKPOINT_FORMAT
        checkpoint["stage"] = self.stage
        checkpoint["progress"] = {"epochs_done": self.epochs_done, "steps": self.steps}
        if self.ended:
            checkpoint["progress"]["ended"] = dict(self.ended)
        is_best = "optimizer_states" not in checkpoint
        if is_best and self.averaged_weights is not None:
            checkpoint["state_dict"] = self.averaged_weights()
        if self.stage == "head" and not is_best:
            weights = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {name: value for name, value in weights if not name.startswith("backbone.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the progress, and add the frozen backbone if the checkpoint leaves it out.

        Raises:
            ValueError: The run started from another backbone.
        """
        self.epochs_done, self.steps = checkpoint["progress"]["epochs_done"], checkpoint["progress"]["steps"]
        self.ended = dict(checkpoint["progress"].get("ended", {}))
        if any(name.startswith("backbone.") for name in checkpoint["state_dict"]):
            return
        expected, found = checkpoint["hyper_parameters"]["weights_digest"], state_dict_sha256(self.backbone)
        if found != expected:
            raise ValueError(
                f"this head-stage checkpoint needs the backbone {expected[:8]}…, found {found[:8]}…: resume the run "
                "with the model.weights that it started with; to evaluate or to predict, use best.ckpt"
            )
        checkpoint["state_dict"] |= self.backbone.state_dict(prefix="backbone.")

    def set_mode(self) -> None:
        """Set training mode, and evaluation mode for what is frozen.

        In training mode, a frozen BatchNorm would still update its statistics, and dropout would still act.
        """
        self.train()
        self.backbone.train(self.stage == "finetune")
        for module in frozen_modules(self.backbone, self.depth) if self.stage == "finetune" else ():
            module.eval()
