"""Check a run before anything is downloaded, read or written, and settle what its settings leave open."""

import os
from pathlib import Path
from typing import NamedTuple

from flowers.data.remote import is_remote
from flowers.data.sources.table import table_root
from flowers.evaluation.metrics import all_metrics
from flowers.features.int8_backbone import check_int8
from flowers.models.backbones import check_backbone
from flowers.models.checkpoint_format import read_checkpoint
from flowers.models.input_settings import resolve_input_settings
from flowers.runs.run_folder import LAST_CHECKPOINT, LOCK_FILE, START_FILE, own_run_dir
from flowers.runtime.extras import require_extra
from flowers.runtime.hardware import check_devices, resolve_trainer_config
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.text import shell_setting
from flowers.settings.config import check_targets
from flowers.settings.job import is_multirun
from flowers.settings.schema.training import Table, TrainSettings
from flowers.training.trackers.mlflow import local_tracking_uri


class PreparedRun(NamedTuple):
    """What `prepare_run` returns: checked settings without open values, with absolute paths, and the run folder."""

    settings: TrainSettings
    run_dir: Path


def prepare_run(run: TrainSettings | PreparedRun) -> PreparedRun:
    """Check settings once, and return them with the values that are still open. Nothing is written.

    Raises:
        ValueError: See `check_config`; or the folder holds another run.
    """
    if isinstance(run, PreparedRun):
        return run
    settings = run
    check_config(settings)
    model, data = resolve_input_settings(settings.model, settings.data)
    run_dir = Path(settings.run_dir)
    # Not Path.resolve: before Python 3.13 it raises RuntimeError for a link to itself.
    if isinstance(data, Table):
        place = str(table_root(data.table, data.root))
        data = data.replace(table=str(Path(data.table).absolute()))
    else:
        place = data.root
    root = place if is_remote(place) else os.path.realpath(place)
    # Of a link, messages give the name as it is.
    corrections = str(Path(data.corrections).absolute()) if data.corrections else data.corrections
    last = run_dir / LAST_CHECKPOINT
    if settings.resume and last.exists():  # photos look as before, also to a run of an earlier version
        data = data.replace(bit_depth=read_checkpoint(last)["hyper_parameters"].get("bit_depth"))
    settings = settings.replace(
        model=model,
        data=data.replace(root=root, corrections=corrections),
    )
    mlflow = settings.logger.mlflow if settings.logger else None
    if settings.logger and mlflow and not mlflow.tracking_uri and "MLFLOW_TRACKING_URI" not in os.environ:
        local = mlflow.replace(tracking_uri=local_tracking_uri())
        settings = settings.replace(logger=settings.logger.replace(mlflow=local))
    check_is_free(settings, run_dir)
    return PreparedRun(settings, run_dir)


def check_is_free(settings: TrainSettings, run_dir: Path) -> None:
    """Check that a run folder holds no run, or the one that is resumed.

    Raises:
        ValueError: It holds another run.
    """
    if is_rank_zero() and (run_dir / START_FILE).exists() and not settings.resume:
        raise ValueError(
            f"{run_dir} already holds a run: {shell_setting('resume', run_dir)} continues it, "
            "hydra.run.dir=FOLDER starts another one"
        )


def check_run(settings: TrainSettings) -> PreparedRun:
    """Check a run before Hydra creates its folder: its settings, and that the folder is free.

    Raises:
        ValueError: See `prepare_run`; or another process trains in the folder.
    """
    run = prepare_run(settings)
    if is_rank_zero() and (run.run_dir / LOCK_FILE).exists():
        with own_run_dir(run.run_dir):
            pass
    return run


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
    if is_multirun() and devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
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
        check_find_lr(settings)
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


def check_find_lr(settings: TrainSettings) -> None:
    """Check that the learning rates of one run can be found on one device.

    Raises:
        ValueError: They cannot.
    """
    if settings.resume:
        raise ValueError(
            f"find_lr=true with resume={settings.resume}: rates are found before a run: expected one of them"
        )
    if is_multirun():
        raise ValueError("find_lr=true in a multirun: expected one set of settings, without -m")
    devices, strategy = settings.trainer.devices, settings.trainer.strategy
    if devices not in (1, "1") or strategy == "fsdp2":
        raise ValueError(
            f"find_lr=true with trainer.devices={devices} trainer.strategy={strategy}: "
            "expected one device, trainer.devices=1 trainer.strategy=auto"
        )
