"""What a person wants to know before the first step, and after the last."""

import logging
from collections.abc import Sequence

from lightning import Trainer

from flowers import hardware
from flowers.data import FlowersData
from flowers.model import FlowerClassifier
from flowers.split import SPLITS
from flowers.stages import Leg

log = logging.getLogger(__name__)


def log_start(data: FlowersData, model: FlowerClassifier, legs: Sequence[Leg], trainer: Trainer) -> None:
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
    device = hardware.name(trainer.strategy.root_device)
    lines += [f"{model.hparams['architecture']} with {head + body:,} parameters on {device}, {trainer.precision}"]
    if trainer.world_size > 1:
        share = data.step_share(trainer.world_size)
        lines += [f"{trainer.world_size} processes, {share} of the {data.batch_size} photos of a step each"]
    lines += [f"watch it: tensorboard --logdir {trainer.default_root_dir}"]
    log.info("\n".join(lines))
