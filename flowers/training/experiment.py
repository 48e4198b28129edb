"""Train a classifier from a configuration: the whole run, in the order in which things happen."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from omegaconf import OmegaConf

from flowers.data.datamodule import ImageDataModule
from flowers.data.remote import is_remote
from flowers.data.splits import SPLITS, load_split, save_split
from flowers.evaluation.metrics import all_metrics
from flowers.features.int8_backbone import check_int8
from flowers.models.backbones import check_backbone
from flowers.models.input_settings import resolve_input_settings
from flowers.models.losses import LossFunction, class_weighted
from flowers.models.network import Network
from flowers.runs.resume import write_start
from flowers.runs.run_folder import (
    CONFIG_FILE,
    CORRECTIONS_FILE,
    LOCK_FILE,
    PROFILE_DIR,
    SPLIT_FILE,
    START_FILE,
    own_run_dir,
)
from flowers.runtime.distributed import broadcast_object
from flowers.runtime.extras import require_extra
from flowers.runtime.files import atomic_write_text
from flowers.runtime.hardware import check_devices, device_name, resolve_trainer_config
from flowers.runtime.interrupt import resumable
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.logging import configure_logging
from flowers.runtime.text import one_line
from flowers.settings.config import build_parts, check_targets
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.training import TrainSettings
from flowers.settings.schema.values import parse_duration
from flowers.training.callbacks import GlobalStep, ProbeHead, WeightEMA
from flowers.training.checkpointing import AtomicCheckpointIO
from flowers.training.cuda_graphs import GraphTraining
from flowers.training.fsdp import FSDP2Strategy
from flowers.training.results import finalize_run
from flowers.training.stage_limits import StageTimer
from flowers.training.stage_plan import StagePlan, check_stages, plan_stages, train_stage
from flowers.training.stages import FinetuneStage, HeadStage
from flowers.training.task import FineTuning
from flowers.training.trackers.mlflow import local_tracking_uri
from flowers.training.trackers.session import make_loggers, tracked, watch_lines

log = logging.getLogger(__name__)

_SUMMARY_CLASSES = 40  # of the table at the start of a run


def run_training(settings: TrainSettings, extra_callbacks: Sequence[Callback] = ()) -> float:
    """Train the stages that are left of a run, and evaluate its best checkpoint.

    Args:
        settings: The configuration of `flowers.train`.
        extra_callbacks: Callbacks in addition to `settings.callbacks`.

    Returns:
        The validation accuracy of the best checkpoint.

    Raises:
        ValueError: The configuration, the images or the run folder cannot be used. What needs neither images nor
            network is checked before anything is downloaded, read or written.
    """
    configure_logging()  # Lightning is imported by now
    settings, run_dir = prepare_run(settings)
    with own_run_dir(run_dir) if is_rank_zero() else nullcontext():
        return _run_stages(settings, run_dir, extra_callbacks)


def _run_stages(settings: TrainSettings, run_dir: Path, extra_callbacks: Sequence[Callback]) -> float:
    plans = plan_stages(*make_stages(settings), run_dir)
    data = ImageDataModule.from_settings(**build_parts(settings.data), seed=settings.seed)
    timer = StageTimer(parse_duration(settings.trainer.max_time) if settings.trainer.max_time else None)
    own_callbacks: list[Callback] = [timer, GlobalStep()]
    if settings.finetune.cuda_graph and not settings.finetune.compile:
        own_callbacks.append(GraphTraining())
    if settings.head.init == "probe":
        own_callbacks.append(ProbeHead(data, settings.features.to_dict()))
    trainer = make_trainer(settings, run_dir, own_callbacks, extra_callbacks)
    seed_everything(settings.seed)
    task = make_task(settings, data, trainer)  # the first use of the images: downloads, verifies and splits them
    check_stages(plans, data, trainer, settings.reject)
    write_run_manifest(settings, run_dir, data)
    log_run_summary(data, task, plans, trainer)
    with resumable(f"python -m flowers.train resume={run_dir}"), tracked(trainer, settings):
        for plan in plans:
            trainer.profiler = make_profiler(settings.trainer.profiler, run_dir, plan.stage.name)  # type: ignore[attr-defined]
            train_stage(plan, task, data, trainer)
            if broadcast_object(timer.is_over):
                log_time_limit(settings, run_dir, task.progress.epochs_done)
                break
        result = finalize_run(run_dir, data, trainer, timer)
    return float(result["val"]["accuracy"])


def prepare_run(settings: TrainSettings) -> tuple[TrainSettings, Path]:
    """Check settings, and return them with the values that are still open, and the run folder. Nothing is written.

    Paths are absolute.

    Raises:
        ValueError: See `check_config`; or the folder holds another run.
    """
    check_config(settings)
    model, data = resolve_input_settings(settings.model, settings.data)
    run_dir = Path(settings.run_dir)
    # Not Path.resolve: before Python 3.13 it raises RuntimeError for a link to itself.
    root = data.root if is_remote(data.root) else os.path.realpath(data.root)
    # Of a link, messages give the name as it is.
    corrections = str(Path(data.corrections).absolute()) if data.corrections else data.corrections
    settings = settings.replace(
        model=model,
        data=data.replace(root=root, corrections=corrections),
    )
    mlflow = settings.logger.mlflow if settings.logger else None
    if settings.logger and mlflow and not mlflow.tracking_uri and "MLFLOW_TRACKING_URI" not in os.environ:
        local = mlflow.replace(tracking_uri=local_tracking_uri())
        settings = settings.replace(logger=settings.logger.replace(mlflow=local))
    if is_rank_zero() and (run_dir / START_FILE).exists() and not settings.resume:
        raise ValueError(
            f"{run_dir} already holds a run: resume={run_dir} continues it, hydra.run.dir=FOLDER starts another one"
        )
    return settings, run_dir


def _is_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def check_run(settings: TrainSettings) -> None:
    """Check a run before Hydra creates its folder: its settings, and that the folder is free.

    Raises:
        ValueError: See `prepare_run`; or another process trains in the folder.
    """
    _, run_dir = prepare_run(settings)
    if is_rank_zero() and (run_dir / LOCK_FILE).exists():
        with own_run_dir(run_dir):
            pass


def check_config(settings: TrainSettings) -> None:
    """Check the settings that need neither images nor network: names, types, ranges, devices, a file of weights.

    Raises:
        ValueError: A setting is not valid, or two of them exclude each other.
    """
    for tracker in ("mlflow", "wandb"):
        if settings.logger and tracker in settings.logger.parts():
            require_extra(f"logger={tracker}", tracker, tracker)
    check_targets(settings.to_dict())
    devices, strategy = settings.trainer.devices, settings.trainer.strategy
    if _is_multirun() and devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise ValueError(
            f"trainer.devices={devices}: in a multirun, each process would run the whole sweep: "
            "expected trainer.devices=1, or start each run by itself"
        )
    if strategy == "fsdp":
        raise ValueError("trainer.strategy=fsdp: FSDP version 1 is not supported, expected trainer=fsdp (version 2)")
    if settings.finetune.compile and strategy == "fsdp2":
        raise ValueError("finetune.compile=true: not supported with trainer=fsdp, expected false, or trainer=ddp")
    whole = {
        "callbacks=ema": settings.callbacks is not None and settings.callbacks.ema is not None,
        "head.init=probe": settings.head.init == "probe",
    }
    if strategy == "fsdp2" and any(whole.values()):
        setting = next(setting for setting, is_used in whole.items() if is_used)
        raise ValueError(f"{setting}: not supported with trainer=fsdp, expected trainer=ddp")
    sizes, epochs = settings.finetune.image_sizes or [], settings.finetune.epochs
    if len(sizes) > epochs > 0:
        raise ValueError(f"finetune.image_sizes={sizes}: expected at most one for each of the {epochs} epochs")
    if settings.data.balance == "weights" and settings.loss.class_weights:
        raise ValueError("data.balance=weights with loss.class_weights: expected one of them")
    check_cached_activations(settings)
    if settings.find_lr:
        check_find_lr(settings, _is_multirun())
    check_devices(settings.trainer.accelerator, settings.trainer.devices)
    accelerator = resolve_trainer_config(settings.trainer.to_dict())["accelerator"]
    if settings.trainer.precision == "16-mixed" and accelerator == "cpu":
        raise ValueError("trainer.precision=16-mixed: not on a CPU, expected 32-true or bf16-mixed")
    if settings.features.engine == "int8":
        check_int8(accelerator)
    check_backbone(settings.model.architecture, settings.model.weights, settings.model.options)
    all_metrics()  # those of packages, which are needed when the run ends


def check_cached_activations(settings: TrainSettings) -> None:
    """Check that nothing changes or needs the images of a fine-tune stage on cached activations.

    Raises:
        ValueError: A setting does.
    """
    if not settings.finetune.cached_views:
        return
    expected = {
        "finetune.depth=null": settings.finetune.depth is None and "finetune.depth, the number of trained blocks",
        "finetune.image_sizes": settings.finetune.image_sizes and "finetune.image_sizes=null",
        "finetune.compile=true": settings.finetune.compile and "finetune.compile=false",
        "mixing": settings.mixing and "mixing=null",
    }
    for setting, instead in expected.items():
        if instead:
            raise ValueError(
                f"finetune.cached_views={settings.finetune.cached_views} with {setting}: expected {instead}, "
                "or finetune.cached_views=0"
            )


def check_find_lr(settings: TrainSettings, is_multirun: bool) -> None:
    """Check that the learning rates of one run can be found on one device.

    Raises:
        ValueError: They cannot.
    """
    if settings.resume:
        raise ValueError(
            f"find_lr=true with resume={settings.resume}: rates are found before a run: expected one of them"
        )
    if is_multirun:
        raise ValueError("find_lr=true in a multirun: expected one set of settings, without -m")
    devices, strategy = settings.trainer.devices, settings.trainer.strategy
    if devices not in (1, "1") or strategy == "fsdp2":
        raise ValueError(
            f"find_lr=true with trainer.devices={devices} trainer.strategy={strategy}: "
            "expected one device, trainer.devices=1 trainer.strategy=auto"
        )


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


def log_time_limit(settings: TrainSettings, run_dir: Path, epochs_done: int) -> None:
    """Log that `trainer.max_time` is over, and how to train on, if there are epochs left."""
    plans = plan_stages(*make_stages(settings), run_dir)
    if left := sum(plan.remaining for plan in plans):
        log.info(
            "trainer.max_time=%s is over after %d epochs; for up to %d more: python -m flowers.train resume=%s "
            "trainer.max_time=null",
            *(settings.trainer.max_time, epochs_done, left, run_dir),
        )


def make_stages(settings: TrainSettings) -> tuple[HeadStage, FinetuneStage]:
    """Return both stages of a run."""
    head, finetune = settings.head, settings.finetune
    mixing = settings.mixing.build() if settings.mixing else None
    return (
        HeadStage(head.epochs, head.cached_views, settings.features.to_dict(), mixing),
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


def write_run_manifest(settings: TrainSettings, run_dir: Path, data: ImageDataModule) -> None:
    """Write what the run was started with, the corrections of labels, the split and the configuration.

    A resumed run changes none of them.

    Raises:
        ValueError: The resumed run has another split; nothing is written.
    """
    split_file, config_file = run_dir / SPLIT_FILE, run_dir / CONFIG_FILE
    if split_file.exists() and load_split(split_file) != data.records:
        raise ValueError(
            f"the images or their split differ from {split_file}: restore the images and the data settings, "
            "or start a new run"
        )
    if is_rank_zero():
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else None
        write_start(run_dir, overrides, bool(settings.resume))
        if data.corrections.lines and not (run_dir / CORRECTIONS_FILE).exists():
            data.corrections.save(run_dir / CORRECTIONS_FILE)
        if not split_file.exists():
            save_split(data.records, split_file)
        if not config_file.exists():
            atomic_write_text(config_file, OmegaConf.to_yaml(settings.to_dict()))


def log_run_summary(data: ImageDataModule, task: FineTuning, plans: Sequence[StagePlan], trainer: Trainer) -> None:
    """Log images per class and split, parameters per stage, device, precision, and how to watch."""
    counts = {split: data.counts(split) for split in SPLITS if data.counts(split)}
    width = max(len(one_line(name)) for name in data.classes[:_SUMMARY_CLASSES]) + 2
    lines = ["images".ljust(width) + "".join(split.rjust(8) for split in counts)]
    shown = data.classes[:_SUMMARY_CLASSES]
    lines += [one_line(name).ljust(width) + "".join(f"{count[name]:8,}" for count in counts.values()) for name in shown]
    if len(data.classes) > len(shown):
        lines += [f"… and {len(data.classes) - len(shown):,} more classes"]
    lines += ["all".ljust(width) + "".join(f"{count.total():8,}" for count in counts.values())]
    if data.corrections.lines:
        lines += [f"corrections of {one_line(data.corrections.source)}: {data.corrections.summary()}"]
    if weights := [weight for weight in data.class_weights() or () if weight]:
        least, most = min(weights), max(weights)
        lines += [f"data.balance={data.balance}: an image counts {least:.3g} to {most:.3g} times, by its class"]
    network, head_lr = task.network, (task.config or {})["optimizer"]["lr"]
    for plan in plans:
        plan.stage.freeze(network)
        trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        rates = f"learning rate {head_lr:g}{plan.stage.backbone_rate}"
        lines += [
            f"{plan.stage.name} stage: {plan.remaining} of {plan.stage.epochs} epochs left, {trained:,} trained "
            f"parameters, {rates}"
        ]
    device, count = device_name(trainer.strategy.root_device), sum(weight.numel() for weight in network.parameters())
    lines += [f"{network.hparams['architecture']} with {count:,} parameters on {device}, {trainer.precision}"]
    if trainer.world_size > 1:
        share = data.per_rank_batch_size(trainer.world_size)
        lines += [f"{trainer.world_size} processes, each with {share} of the {data.batch_size} images of a step"]
    lines += watch_lines(trainer.loggers)
    log.info("\n".join(lines))
