"""What a run writes and logs of itself at its start, and when its time is over."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lightning import Trainer
from omegaconf import OmegaConf
from rich.cells import cell_len

from flowers.data.datamodule import ImageDataModule
from flowers.data.splits import SPLITS, group_summary, load_split, save_split
from flowers.runs.resume import write_start
from flowers.runs.run_folder import (
    CONFIG_FILE,
    CORRECTIONS_FILE,
    SPLIT_FILE,
)
from flowers.runtime.files import atomic_write_text
from flowers.runtime.hardware import device_name
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.text import one_line, shell_setting
from flowers.settings.job import job_overrides
from flowers.settings.schema.training import TrainSettings
from flowers.training.build import make_stages
from flowers.training.stage_plan import StagePlan, plan_stages
from flowers.training.task import FineTuning
from flowers.training.trackers.session import watch_lines

log = logging.getLogger(__name__)

_SUMMARY_CLASSES = 40  # of the table at the start of a run


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
        write_start(run_dir, job_overrides(), bool(settings.resume))
        if data.corrections.lines and not (run_dir / CORRECTIONS_FILE).exists():
            data.corrections.save(run_dir / CORRECTIONS_FILE)
        if not split_file.exists():
            save_split(data.records, split_file)
        if not config_file.exists():
            atomic_write_text(config_file, OmegaConf.to_yaml(settings.to_dict()))


def log_run_summary(data: ImageDataModule, task: FineTuning, plans: Sequence[StagePlan], trainer: Trainer) -> None:
    """Log images per class and split, parameters per stage, device, precision, and how to watch."""
    counts = {split: data.counts(split) for split in SPLITS if data.counts(split)}
    width = max(cell_len(one_line(name)) for name in ("images", *data.classes[:_SUMMARY_CLASSES])) + 2
    lines = [_padded("images", width) + "".join(split.rjust(8) for split in counts)]
    shown = data.classes[:_SUMMARY_CLASSES]
    lines += [
        _padded(one_line(name), width) + "".join(f"{count[name]:8,}" for count in counts.values()) for name in shown
    ]
    if len(data.classes) > len(shown):
        lines += [f"… and {len(data.classes) - len(shown):,} more classes"]
    lines += [_padded("all", width) + "".join(f"{count.total():8,}" for count in counts.values())]
    lines += [group_summary(data.records)]
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


def _padded(text: str, width: int) -> str:
    """Fill up a text to a number of columns of a terminal, of which some letters take two."""
    return text + " " * (width - cell_len(text))


def log_time_limit(settings: TrainSettings, run_dir: Path, epochs_done: int) -> None:
    """Log that `trainer.max_time` is over, and how to train on, if there are epochs left."""
    plans = plan_stages(*make_stages(settings), run_dir)
    if left := sum(plan.remaining for plan in plans):
        log.info(
            "trainer.max_time=%s is over after %d epochs; for up to %d more: python -m flowers.train %s "
            "trainer.max_time=null",
            *(settings.trainer.max_time, epochs_done, left, shell_setting("resume", run_dir)),
        )
