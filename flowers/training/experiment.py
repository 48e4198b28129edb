"""Train a classifier from a configuration: the whole flow, in the order things happen."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, ListConfig, OmegaConf

from flowers.data.datamodule import ImageDataModule
from flowers.data.remote import is_remote
from flowers.data.splits import SPLITS, SplitRecord, load_split, save_split
from flowers.evaluation.calibration import fit_temperature
from flowers.evaluation.evaluator import extract_features, predict_features
from flowers.evaluation.metrics import score, score_line
from flowers.features.datamodule import FeatureDataModule
from flowers.models.classifier import ImageClassifier, load_classifier, read_checkpoint
from flowers.runtime.config import to_container
from flowers.runtime.files import atomic_write_text, write_json
from flowers.runtime.hardware import device_name, peak_memory_bytes, resolve_trainer_config
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.run_folder import (
    BEST_CHECKPOINT,
    CONFIG_FILE,
    PREDICTIONS_DIR,
    RESULT_FILE,
    SPLIT_FILE,
    START_FILE,
    provenance,
    resumable,
)
from flowers.training.callbacks import ImageLogger, StageTimer
from flowers.training.checkpointing import AtomicCheckpointIO
from flowers.training.fsdp import FSDP2Strategy
from flowers.training.stages import StagePlan, check_stages, plan_stages
from flowers.training.tensorboard import log_embeddings, log_hyperparameters

log = logging.getLogger(__name__)


def prepare_run_dir(cfg: DictConfig) -> Path:
    """The run's folder; `cfg` gets the absolute paths of it and of the photos.

    Raises ValueError where it holds another run already, in a multirun for a run of several processes, and where
    trainer.strategy is not offered, or not for a compiled backbone.
    """
    folder = Path(cfg.run_dir).resolve()
    cfg.run_dir = str(folder)
    cfg.data.root = cfg.data.root if is_remote(cfg.data.root) else str(Path(cfg.data.root).resolve())
    is_multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    devices = cfg.trainer.devices
    if is_multirun and devices not in (1, "1") and not (isinstance(devices, ListConfig) and len(devices) == 1):
        raise ValueError(
            f"a multirun with trainer.devices={devices} would run the whole sweep once a process: "
            "give trainer.devices=1, or start each run by itself"
        )
    if cfg.trainer.strategy == "fsdp":
        raise ValueError("trainer.strategy=fsdp is FSDP of the first kind, which is not offered: wanted trainer=fsdp")
    if cfg.finetune.compile and cfg.trainer.strategy == "fsdp2":
        raise ValueError("finetune.compile=true does not go with trainer=fsdp: wanted one of them, or trainer=ddp")
    if is_rank_zero() and (folder / CONFIG_FILE).exists() and not cfg.resume:
        raise ValueError(
            f"{folder} holds a run already: resume={folder} goes on with it, hydra.run.dir=… starts another"
        )
    return folder


def write_run_manifest(cfg: DictConfig, folder: Path, rows: Sequence[SplitRecord]) -> None:
    """Writes what the run is: its split, its configuration, and the overrides that resuming starts from.

    Raises ValueError, and writes nothing, where the run that is gone on with had another split.
    """
    kept = folder / SPLIT_FILE
    if kept.exists() and load_split(kept) != list(rows):
        raise ValueError(f"the photos or the split differ from those of {kept}: bring them back, or start a new run")
    if is_rank_zero():
        save_split(rows, kept)
        atomic_write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(cfg, resolve=True))
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        atomic_write_text(folder / START_FILE, OmegaConf.to_yaml({"cwd": str(Path.cwd()), "overrides": overrides}))


def run_training(cfg: DictConfig) -> float:
    """Runs the stages that `cfg` asks for, in its run folder; returns the best checkpoint's validation accuracy."""

    folder = prepare_run_dir(cfg)
    legs = plan_stages(cfg.head.epochs, cfg.finetune.epochs, folder)
    seed_everything(cfg.seed)
    data = ImageDataModule(**{**cfg.data, "source": instantiate(cfg.data.source)}, seed=cfg.seed)
    model = ImageClassifier(
        **to_container(cfg.model),
        classes=data.classes,
        image_size=cfg.data.image_size,
        resize=cfg.data.resize,
        split_digest=data.split_digest,
        config=to_container(cfg),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        backbone_lr=cfg.finetune.backbone_lr,
        compiled=cfg.finetune.compile,
        seed=cfg.seed,
    )
    kept = FeatureDataModule(data, model, max(cfg.head.cached_views, 1), **cfg.features)
    trainer_config = resolve_trainer_config(cfg.trainer)
    if cfg.trainer.strategy == "fsdp2":
        trainer_config["strategy"] = FSDP2Strategy()
    trainer = Trainer(
        **trainer_config,
        callbacks=[clock := StageTimer(), *map(instantiate, cfg.callbacks.values())],
        logger=instantiate(cfg.logger),
        plugins=AtomicCheckpointIO(),
        default_root_dir=folder,
    )
    check_stages(legs, data, trainer, cfg.head.cached_views)
    write_run_manifest(cfg, folder, data.records)
    log_run_summary(data, model, legs, trainer)
    with resumable(f"python -m flowers.train resume={folder}"):
        for leg in legs:
            frozen = kept if leg.stage == "head" and cfg.head.cached_views else data
            model.set_stage(leg.stage, leg.epochs)
            trainer.fit_loop.max_epochs = leg.until
            trainer.fit(model, frozen if leg.left else data, ckpt_path=leg.checkpoint, weights_only=True)
        return float(finalize_run(folder, data, trainer, clock)["val"]["accuracy"])


def log_run_summary(data: ImageDataModule, model: ImageClassifier, legs: Sequence[StagePlan], trainer: Trainer) -> None:
    """Photos per class and split, what each stage trains, device and precision, the run folder, where to watch."""
    counts = {split: data.counts(split) for split in SPLITS if data.counts(split)}
    width = max(map(len, data.classes)) + 2
    lines = ["photos".ljust(width) + "".join(split.rjust(8) for split in counts)]
    lines += [name.ljust(width) + "".join(f"{count[name]:8,}" for count in counts.values()) for name in [*data.classes]]
    lines += ["all".ljust(width) + "".join(f"{count.total():8,}" for count in counts.values())]
    head, body = (sum(weight.numel() for weight in part.parameters()) for part in (model.head, model.backbone))
    for leg in legs:
        trained = head if leg.stage == "head" else head + body
        lines += [f"{leg.stage} stage: {leg.left} of {leg.epochs} epochs left, {trained:,} parameters to train"]
    device = device_name(trainer.strategy.root_device)
    lines += [f"{model.hparams['architecture']} with {head + body:,} parameters on {device}, {trainer.precision}"]
    if trainer.world_size > 1:
        share = data.per_rank_batch_size(trainer.world_size)
        lines += [f"{trainer.world_size} processes, {share} of the {data.batch_size} photos of a step each"]
    lines += [f"watch it: tensorboard --logdir {trainer.default_root_dir}"]
    log.info("\n".join(lines))


def finalize_run(run_dir: Path, data: ImageDataModule, trainer: Trainer, clock: StageTimer) -> dict[str, Any]:
    """Scores the best checkpoint on val, and on test where there is one; writes result.json, logs and returns it."""
    trainer.strategy.barrier()  # the first process may still be writing it
    kept = read_checkpoint(run_dir / BEST_CHECKPOINT)
    config = kept["hyper_parameters"]["config"]
    if isinstance(trainer.strategy, FSDP2Strategy):
        model = load_classifier(run_dir / BEST_CHECKPOINT)
    else:
        model = cast(ImageClassifier, trainer.lightning_module)
        model.load_state_dict(kept["state_dict"])
    asked = {split: data.dataset(split) for split in ("val", "test") if data.counts(split)}
    features = {split: extract_features(model, data, dataset, split, config) for split, dataset in asked.items()}
    said = {split: predict_features(model, features[split], dataset) for split, dataset in asked.items()}
    scores = {split: score(predictions) for split, predictions in said.items()}
    result = scores | {
        "temperature": fit_temperature(said["val"].logits, said["val"].labels),
        "best_epoch": kept["epoch"] + 1,
        "classes": data.classes,
        "seed": config["seed"],
        "digest": {"split": data.split_digest, "weights": kept["hyper_parameters"]["weights_digest"]},
        "device": device_name(trainer.strategy.root_device),
        "precision": trainer.precision,
        **provenance(),
        "cost": {
            "seconds": dict(clock.seconds),
            "photos_per_second": {stage: clock.photos[stage] / clock.training[stage] for stage in clock.photos},
            "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
        },
    }
    if is_rank_zero():
        for split, predictions in said.items():
            predictions.save(run_dir / PREDICTIONS_DIR / f"{split}.csv")
        write_json(result, run_dir / RESULT_FILE)
    if any(isinstance(callback, ImageLogger) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        log_embeddings(trainer, features["val"], said["val"], data.root)
    log_hyperparameters(trainer, config, {f"best/{name}": scores["val"][name] for name in ("accuracy", "loss")})
    for split, scored in scores.items():
        log.info(score_line(split, scored))
    log.info("%.1f s of training, run folder %s", sum(clock.seconds.values()), run_dir)
    return result
