"""Build the parts of a run from its settings: the Trainer, the stages, the network and its training."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from flowers.data.datamodule import ImageDataModule
from flowers.data.sources.build import split_settings
from flowers.data.splitter import Splitter
from flowers.models.losses import LossFunction, class_weighted
from flowers.models.network import Network
from flowers.runs.run_folder import CONFIG_FILE, PROFILE_DIR, SPLIT_FILE
from flowers.runtime.files import read_yaml
from flowers.runtime.hardware import resolve_trainer_config
from flowers.settings.config import build_parts
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.training import TrainSettings
from flowers.training.callbacks import WeightEMA
from flowers.training.checkpointing import AtomicCheckpointIO
from flowers.training.fsdp import FSDP2Strategy
from flowers.training.stages import FinetuneStage, HeadStage
from flowers.training.task import FineTuning
from flowers.training.trackers.session import make_loggers


def make_trainer(
    settings: TrainSettings, run_dir: Path, own_callbacks: Sequence[Callback], extra_callbacks: Sequence[Callback]
) -> Trainer:
    """Return the Trainer of all stages; see `GlobalStep` for why it is one."""
    arguments = resolve_trainer_config(settings.trainer.to_dict()) | {"max_time": None, "profiler": None}
    if arguments["strategy"] == "fsdp2":
        arguments["strategy"] = FSDP2Strategy()
    callbacks = settings.callbacks.parts() if settings.callbacks else {}
    return Trainer(
        **arguments,
        callbacks=[*own_callbacks, *(each.build() for each in callbacks.values()), *extra_callbacks],
        logger=make_loggers(settings.logger.parts() if settings.logger else {}, run_dir),
        plugins=AtomicCheckpointIO(),
        default_root_dir=run_dir,
    )


def make_profiler(name: str | None, run_dir: Path, stage: str) -> Profiler:
    """Return the profiler of a stage, which writes to `profile` in the run folder. A resumed run adds to its files."""
    profilers: dict[str | None, Callable[..., Profiler]] = {
        None: PassThroughProfiler,
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    return profilers[name](**({"dirpath": run_dir / PROFILE_DIR, "filename": stage} if name else {}))


def make_data(settings: TrainSettings, run_dir: Path) -> ImageDataModule:
    """Return the images. A resumed run keeps the split in its folder if no setting of the split has changed."""
    data = settings.data.to_dict()
    names = {field.name for field in fields(Splitter)} & data.keys()
    if names and (run_dir / SPLIT_FILE).is_file() and (run_dir / CONFIG_FILE).is_file():
        stored = read_yaml(run_dir / CONFIG_FILE).get("data", {})  # older runs have fewer settings of the split
        if all(stored[name] == data[name] for name in names & stored.keys()):
            return ImageDataModule.from_settings(
                **build_parts(settings.data) | split_settings(run_dir / SPLIT_FILE, data), seed=settings.seed
            )
    return ImageDataModule.from_settings(**build_parts(settings.data), seed=settings.seed)


def make_stages(settings: TrainSettings) -> tuple[HeadStage, FinetuneStage]:
    """Return both stages of a run."""
    head, finetune = settings.head, settings.finetune
    mixing = settings.mixing.build() if settings.mixing else None
    return (
        HeadStage(head.epochs, head.cached_views, settings.features, mixing),
        FinetuneStage(
            epochs=finetune.epochs,
            cached_views=finetune.cached_views,
            backbone_lr=finetune.backbone_lr,
            layer_decay=finetune.layer_decay,
            norm_weight_decay=finetune.norm_weight_decay,
            depth=finetune.depth,
            image_sizes=finetune.image_sizes or (),
            mixing=mixing,
        ),
    )


def make_task(settings: TrainSettings, data: ImageDataModule, trainer: Trainer) -> FineTuning:
    """Return the network before training, with what trains it."""
    # Lightning refuses to clip gradients for a fused optimizer under mixed precision: with float16, such an optimizer
    # divides the gradients by the loss scale inside its step, after they are clipped.
    is_clipped = (
        str(trainer.precision).endswith("-mixed")
        and trainer.gradient_clip_val
        and "fused" in settings.optimizer.given()
    )
    network = Network(
        settings.model.architecture,
        data.classes,
        settings.model.weights,
        settings.model.options,
        Preprocessing.from_settings(settings.data, settings.model),
        split_digest=data.split_digest,
        seed=settings.seed,
    )
    if settings.finetune.compile:
        network.backbone.compile()  # in place: the names in checkpoints do not change
    if settings.head.init == "zero":
        for parameter in network.head.parameters():
            torch.nn.init.zeros_(parameter)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averaging = next((callback for callback in callbacks if isinstance(callback, WeightEMA)), None)
    return FineTuning(
        network,
        optimizer=settings.optimizer.build(**({"fused": False} if is_clipped else {})),
        scheduler=settings.scheduler.build(),
        loss=make_loss(settings, data),
        seed=settings.seed,
        config=settings.to_dict(),
        averaging=averaging.averaged_weights if averaging else None,
    )


def make_loss(settings: TrainSettings, data: ImageDataModule) -> LossFunction:
    """Return the training loss, with the weights of the classes if `data.balance` asks for them."""
    loss: LossFunction = settings.loss.build()
    if isinstance(loss, partial):  # that of Hydra checks its target at each call, for longer than a step of the head
        loss = partial(loss.func, *loss.args, **loss.keywords)
    if data.balance != "weights":
        return loss
    return partial(class_weighted, loss=loss, class_weights=torch.tensor(data.class_weights()))
