"""Train a classifier from a configuration: the whole run, in the order in which things happen."""

import copy
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from omegaconf import DictConfig, ListConfig, OmegaConf

from flowers.data.datamodule import ImageDataModule
from flowers.data.remote import is_remote
from flowers.data.splits import SPLITS, load_split, save_split
from flowers.features.int8_backbone import check_int8
from flowers.models.backbones import check_backbone
from flowers.models.classifier import ImageClassifier, Stage
from flowers.models.input_settings import resolve_input_settings
from flowers.models.losses import LossFunction, class_weighted
from flowers.runs.run_folder import (
    CONFIG_FILE,
    CORRECTIONS_FILE,
    LOCK_FILE,
    PROFILE_DIR,
    SPLIT_FILE,
    START_FILE,
    own_run_dir,
    short_name,
    write_start,
)
from flowers.runtime.distributed import broadcast_object
from flowers.runtime.extras import require_extra
from flowers.runtime.files import atomic_write_text
from flowers.runtime.hardware import check_devices, device_name, resolve_trainer_config
from flowers.runtime.interrupt import resumable
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.logging import configure_logging
from flowers.runtime.text import one_line
from flowers.settings.config import check_settings, check_targets, instantiate_group, to_container
from flowers.settings.schema.values import parse_duration
from flowers.training.callbacks import GlobalStep, ProbeHead
from flowers.training.checkpointing import AtomicCheckpointIO
from flowers.training.cuda_graphs import GraphTraining
from flowers.training.fsdp import FSDP2Strategy
from flowers.training.online_trackers import local_tracking_uri
from flowers.training.results import finalize_run
from flowers.training.stage_limits import StageTimer
from flowers.training.stages import StagePlan, check_stages, plan_stages, train_stage
from flowers.training.trackers import make_loggers, tracked, watch_lines

log = logging.getLogger(__name__)

_SUMMARY_CLASSES = 40  # of the table at the start of a run


def run_training(cfg: DictConfig, extra_callbacks: Sequence[Callback] = ()) -> float:
    """Train the stages that are left of a run, and evaluate its best checkpoint.

    Args:
        cfg: The configuration of `flowers.train`.
        extra_callbacks: Callbacks in addition to `cfg.callbacks`.

    Returns:
        The validation accuracy of the best checkpoint.

    Raises:
        ValueError: The configuration, the images or the run folder cannot be used. What needs neither images nor
            network is checked before anything is downloaded, read or written.
    """
    configure_logging()  # Lightning is imported by now
    check_config(cfg)
    resolve_input_settings(cfg)
    run_dir = prepare_run_dir(cfg)
    with own_run_dir(run_dir) if is_rank_zero() else nullcontext():
        return _run_stages(cfg, run_dir, extra_callbacks)


def _run_stages(cfg: DictConfig, run_dir: Path, extra_callbacks: Sequence[Callback]) -> float:
    plans = plan_stages(cfg.head.epochs, cfg.finetune.epochs, run_dir)
    data = ImageDataModule(**instantiate_group(cfg.data), seed=cfg.seed)
    timer = StageTimer(parse_duration(cfg.trainer.max_time) if cfg.trainer.max_time else None)
    own_callbacks: list[Callback] = [timer, GlobalStep()]
    cached_views: dict[Stage, int] = {"head": cfg.head.cached_views, "finetune": cfg.finetune.cached_views}
    if cfg.finetune.cuda_graph and not cfg.finetune.compile:
        own_callbacks.append(GraphTraining())
    if cfg.head.init == "probe":
        own_callbacks.append(ProbeHead(data, cfg.features))
    trainer = make_trainer(cfg, run_dir, own_callbacks, extra_callbacks)
    seed_everything(cfg.seed)
    model = make_model(cfg, data, trainer)  # the first use of the images: downloads, verifies and splits them
    check_stages(plans, data, trainer, cached_views, cfg.reject)
    write_run_manifest(cfg, run_dir, data)
    log_run_summary(data, model, plans, trainer)
    with resumable(f"python -m flowers.train resume={run_dir}"), tracked(trainer, cfg):
        for plan in plans:
            trainer.profiler = make_profiler(cfg.trainer.profiler, run_dir, plan.stage)  # type: ignore[attr-defined]
            train_stage(plan, model, data, trainer, cached_views, cfg.features)
            if broadcast_object(timer.is_over):
                log_time_limit(cfg, run_dir, model)
                break
        result = finalize_run(run_dir, data, trainer, timer)
    return float(result["val"]["accuracy"])


def prepare_run_dir(cfg: DictConfig) -> Path:
    """Return the run folder, and make it and the other paths in `cfg` absolute. Nothing is written.

    The runs of a multirun get its folder as their `group`.

    Raises:
        ValueError: The folder holds another run.
    """
    run_dir = Path(cfg.run_dir).resolve()
    cfg.run_dir = str(run_dir)
    # Not Path.resolve: before Python 3.13 it raises RuntimeError for a link to itself.
    cfg.data.root = cfg.data.root if is_remote(cfg.data.root) else os.path.realpath(cfg.data.root)
    if cfg.data.corrections:
        cfg.data.corrections = str(Path(cfg.data.corrections).absolute())  # of a link, messages give the name as it is
    if _is_multirun() and not cfg.group:
        cfg.group = short_name(Path(HydraConfig.get().sweep.dir))
    mlflow = (cfg.get("logger") or {}).get("mlflow")
    if mlflow and not mlflow.tracking_uri and "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.tracking_uri = local_tracking_uri()
    if is_rank_zero() and (run_dir / START_FILE).exists() and not cfg.resume:
        raise ValueError(
            f"{run_dir} already holds a run: resume={run_dir} continues it, hydra.run.dir=FOLDER starts another one"
        )
    return run_dir


def _is_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def check_run(cfg: DictConfig) -> None:
    """Check a run before Hydra creates its folder: its settings, and that the folder is free.

    Raises:
        ValueError: See `check_config` and `prepare_run_dir`; or another process trains in the folder.
    """
    check_config(cfg)
    copied = copy.deepcopy(cfg)
    resolve_input_settings(copied)
    run_dir = prepare_run_dir(copied)
    if is_rank_zero() and (run_dir / LOCK_FILE).exists():
        with own_run_dir(run_dir):
            pass


def check_config(cfg: DictConfig) -> None:
    """Check the settings that need neither images nor network: names, types, ranges, devices, a file of weights.

    Raises:
        ValueError: A setting is not valid, or two of them exclude each other.
    """
    check_settings(cfg, "train")
    for tracker in ("mlflow", "wandb"):
        if tracker in (cfg.get("logger") or {}):
            require_extra(f"logger={tracker}", tracker, tracker)
    check_targets(to_container(cfg))
    devices, strategy = cfg.trainer.devices, cfg.trainer.strategy
    if _is_multirun() and devices not in (1, "1") and not (isinstance(devices, ListConfig) and len(devices) == 1):
        raise ValueError(
            f"trainer.devices={devices}: in a multirun, each process would run the whole sweep: "
            "expected trainer.devices=1, or start each run by itself"
        )
    if strategy == "fsdp":
        raise ValueError("trainer.strategy=fsdp: FSDP version 1 is not supported, expected trainer=fsdp (version 2)")
    if cfg.finetune.compile and strategy == "fsdp2":
        raise ValueError("finetune.compile=true: not supported with trainer=fsdp, expected false, or trainer=ddp")
    whole = {"callbacks=ema": "ema" in (cfg.callbacks or {}), "head.init=probe": cfg.head.init == "probe"}
    if strategy == "fsdp2" and any(whole.values()):
        setting = next(setting for setting, is_used in whole.items() if is_used)
        raise ValueError(f"{setting}: not supported with trainer=fsdp, expected trainer=ddp")
    sizes, epochs = cfg.finetune.image_sizes or (), cfg.finetune.epochs
    if len(sizes) > epochs > 0:
        raise ValueError(f"finetune.image_sizes={list(sizes)}: expected at most one for each of the {epochs} epochs")
    if cfg.data.balance == "weights" and cfg.loss.get("class_weights"):
        raise ValueError("data.balance=weights with loss.class_weights: expected one of them")
    check_cached_activations(cfg)
    if cfg.find_lr:
        check_find_lr(cfg, _is_multirun())
    check_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    if cfg.trainer.precision == "16-mixed" and resolve_trainer_config(cfg.trainer)["accelerator"] == "cpu":
        raise ValueError("trainer.precision=16-mixed: not on a CPU, expected 32-true or bf16-mixed")
    if cfg.features.engine == "int8":
        check_int8(resolve_trainer_config(cfg.trainer)["accelerator"])
    check_backbone(cfg.model.architecture, cfg.model.weights, cfg.model.options)


def check_cached_activations(cfg: DictConfig) -> None:
    """Check that nothing changes or needs the images of a fine-tune stage on cached activations.

    Raises:
        ValueError: A setting does.
    """
    if not cfg.finetune.cached_views:
        return
    expected = {
        "finetune.depth=null": cfg.finetune.depth is None and "finetune.depth, the number of trained blocks",
        "finetune.image_sizes": cfg.finetune.image_sizes and "finetune.image_sizes=null",
        "finetune.compile=true": cfg.finetune.compile and "finetune.compile=false",
        "mixing": cfg.get("mixing") and "mixing=null",
    }
    for setting, instead in expected.items():
        if instead:
            raise ValueError(
                f"finetune.cached_views={cfg.finetune.cached_views} with {setting}: expected {instead}, "
                "or finetune.cached_views=0"
            )


def check_find_lr(cfg: DictConfig, is_multirun: bool) -> None:
    """Check that the learning rates of one run can be found on one device.

    Raises:
        ValueError: They cannot.
    """
    if cfg.resume:
        raise ValueError(f"find_lr=true with resume={cfg.resume}: rates are found before a run: expected one of them")
    if is_multirun:
        raise ValueError("find_lr=true in a multirun: expected one set of settings, without -m")
    if cfg.trainer.devices not in (1, "1") or cfg.trainer.strategy == "fsdp2":
        raise ValueError(
            f"find_lr=true with trainer.devices={cfg.trainer.devices} trainer.strategy={cfg.trainer.strategy}: "
            "expected one device, trainer.devices=1 trainer.strategy=auto"
        )


def make_trainer(
    cfg: DictConfig, run_dir: Path, own_callbacks: Sequence[Callback], extra_callbacks: Sequence[Callback]
) -> Trainer:
    """Return the Trainer of all stages; see `GlobalStep` for why it is one."""
    settings = resolve_trainer_config(cfg.trainer) | {"max_time": None, "profiler": None}
    if settings["strategy"] == "fsdp2":
        settings["strategy"] = FSDP2Strategy()
    return Trainer(
        **settings,
        callbacks=[*own_callbacks, *map(instantiate, cfg.callbacks.values()), *extra_callbacks],
        logger=make_loggers(cfg.get("logger") or {}, run_dir),
        plugins=AtomicCheckpointIO(),
        default_root_dir=run_dir,
    )


def make_profiler(name: str | None, run_dir: Path, stage: Stage) -> Profiler:
    """Return the profiler of a stage, which writes to `profile` in the run folder. A resumed run adds to its files."""
    profilers: dict[str | None, Callable[..., Profiler]] = {
        None: PassThroughProfiler,
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    return profilers[name](**({"dirpath": run_dir / PROFILE_DIR, "filename": stage} if name else {}))


def log_time_limit(cfg: DictConfig, run_dir: Path, model: ImageClassifier) -> None:
    """Log that `trainer.max_time` is over, and how to train on, if there are epochs left."""
    plans = plan_stages(cfg.head.epochs, cfg.finetune.epochs, run_dir)
    if left := sum(plan.remaining for plan in plans):
        log.info(
            "trainer.max_time=%s is over after %d epochs; for up to %d more: python -m flowers.train resume=%s "
            "trainer.max_time=null",
            *(cfg.trainer.max_time, model.epochs_done, left, run_dir),
        )


def make_model(cfg: DictConfig, data: ImageDataModule, trainer: Trainer) -> ImageClassifier:
    """Return the classifier before training."""
    # Lightning refuses to clip gradients for a fused optimizer under mixed precision: with float16, such an optimizer
    # divides the gradients by the loss scale inside its step, after they are clipped.
    is_clipped = str(trainer.precision).endswith("-mixed") and trainer.gradient_clip_val and "fused" in cfg.optimizer
    model = ImageClassifier(
        **to_container(cfg.model),
        classes=data.classes,
        image_size=cfg.data.image_size,
        resize=cfg.data.resize,
        interpolation=cfg.data.interpolation,
        split_digest=data.split_digest,
        config=to_container(cfg),
        optimizer=instantiate(cfg.optimizer, **({"fused": False} if is_clipped else {})),
        scheduler=instantiate(cfg.scheduler),
        backbone_lr=cfg.finetune.backbone_lr,
        compiled=cfg.finetune.compile,
        seed=cfg.seed,
        loss=make_loss(cfg, data),
        mixing=instantiate(cfg.mixing) if "mixing" in cfg else None,
        layer_decay=cfg.finetune.layer_decay,
        norm_weight_decay=cfg.finetune.norm_weight_decay,
        depth=cfg.finetune.depth,
        train_sizes=cfg.finetune.image_sizes,
    )
    if cfg.head.init == "zero":
        for parameter in model.head.parameters():
            torch.nn.init.zeros_(parameter)
    return model


def make_loss(cfg: DictConfig, data: ImageDataModule) -> LossFunction:
    """Return the training loss, with the weights of the classes if `data.balance` asks for them."""
    loss: LossFunction = instantiate(cfg.loss, _convert_="all")
    if isinstance(loss, partial):  # that of Hydra checks its target at each call, for longer than a step of the head
        loss = partial(loss.func, *loss.args, **loss.keywords)
    if data.balance != "weights":
        return loss
    return partial(class_weighted, loss=loss, class_weights=torch.tensor(data.class_weights()))


def write_run_manifest(cfg: DictConfig, run_dir: Path, data: ImageDataModule) -> None:
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
        write_start(run_dir, overrides, bool(cfg.resume))
        if data.corrections.lines and not (run_dir / CORRECTIONS_FILE).exists():
            data.corrections.save(run_dir / CORRECTIONS_FILE)
        if not split_file.exists():
            save_split(data.records, split_file)
        if not config_file.exists():
            atomic_write_text(config_file, OmegaConf.to_yaml(cfg, resolve=True))


def log_run_summary(
    data: ImageDataModule, model: ImageClassifier, plans: Sequence[StagePlan], trainer: Trainer
) -> None:
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
    head_lr = model.hparams["config"]["optimizer"]["lr"]
    head, backbone = (sum(weight.numel() for weight in part.parameters()) for part in (model.head, model.backbone))
    for plan in plans:
        model.set_stage(plan.stage, plan.epochs)  # freezes what the stage does not train
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        backbone_rate = f", backbone {model.backbone_lr:g}" if plan.stage == "finetune" else ""
        lines += [
            f"{plan.stage} stage: {plan.remaining} of {plan.epochs} epochs left, {trained:,} trained parameters, "
            f"learning rate {head_lr:g}{backbone_rate}"
        ]
    device = device_name(trainer.strategy.root_device)
    lines += [f"{model.hparams['architecture']} with {head + backbone:,} parameters on {device}, {trainer.precision}"]
    if trainer.world_size > 1:
        share = data.per_rank_batch_size(trainer.world_size)
        lines += [f"{trainer.world_size} processes, each with {share} of the {data.batch_size} images of a step"]
    lines += watch_lines(trainer.loggers, Path(trainer.default_root_dir))
    log.info("\n".join(lines))
