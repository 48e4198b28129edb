"""Which stages of a run are left, and where a resumed run continues."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule, Trainer

from flowers.data.datamodule import ImageDataModule
from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.rejection import rejection_threshold
from flowers.runs.run_folder import LAST_CHECKPOINT
from flowers.training.checkpointing import epoch_steps_key
from flowers.training.stages import FinetuneStage, HeadStage, Stage
from flowers.training.task import FineTuning

_STEPS_PER_BATCH = 64  # of the head stage on cached features

_MULTI_STEP_OPTIONS = {  # the options of a Trainer that neither counts batches nor changes gradients between two steps
    "world_size": 1,
    "gradient_clip_val": None,
    "accumulate_grad_batches": 1,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,
    "max_steps": -1,
}


class StagePlan(NamedTuple):
    """A stage to train.

    Attributes:
        stage: Its settings and length.
        remaining: The epochs that are left to train.
        end_epoch: The epochs of the run once the stage has ended.
        checkpoint: The checkpoint to resume from.
        epoch_steps: The `epoch_steps_key` of the epoch inside which the checkpoint was written; None between epochs.
    """

    stage: Stage
    remaining: int
    end_epoch: int
    checkpoint: Path | None = None
    epoch_steps: str | None = None


def plan_stages(head: HeadStage, finetune: FinetuneStage, run_dir: Path) -> list[StagePlan]:
    """Return the stages that are left: all of them, or those from the last checkpoint in `run_dir` onwards.

    A stage that ended exactly at the checkpoint is included with no remaining epoch: fitting it restores the state
    from which the next stage starts. A stage that ended early has the epochs that it trained.

    Raises:
        ValueError: There is no epoch to train, or the run has more epochs than requested; or the checkpoint cannot be
            read.
    """
    if min(head.epochs, finetune.epochs) < 0 or not head.epochs + finetune.epochs:
        raise ValueError(
            f"head.epochs={head.epochs} finetune.epochs={finetune.epochs}: expected at least 0 each, and 1 in all"
        )
    last = run_dir / LAST_CHECKPOINT
    stages: list[HeadStage | FinetuneStage] = [head, finetune]
    checkpoint = read_checkpoint(last) if last.exists() else None
    done, mid_epoch = (checkpoint["progress"]["epochs_done"], checkpoint.get("mid_epoch")) if checkpoint else (0, None)
    if checkpoint:
        ended = checkpoint["progress"].get("ended", {})
        stages = [replace(stage, epochs=ended.get(stage.name, stage.epochs)) for stage in stages]
        _check_trained(checkpoint, stages, done + bool(mid_epoch), run_dir)
    plans = [
        StagePlan(stage, min(stage.epochs, end - done), end)
        for stage, end in zip(stages, accumulate(stage.epochs for stage in stages), strict=True)
        if stage.epochs and (end > done or (end == done and not mid_epoch))  # mid_epoch: inside the next stage
    ]
    if checkpoint:
        plans[0] = plans[0]._replace(checkpoint=last, epoch_steps=mid_epoch["epoch_steps"] if mid_epoch else None)
    return plans


def _check_trained(checkpoint: Mapping[str, Any], stages: Sequence[Stage], begun: int, run_dir: Path) -> None:
    """Check that a resumed run has the epochs that it has begun, each in its stage."""
    head, finetune = stages
    if checkpoint["stage"] == head.name:
        current, trained = head, begun
    else:
        config = checkpoint["hyper_parameters"]["config"] or {}
        before = checkpoint["progress"].get("ended", {}).get("head", config.get("head", {}).get("epochs", head.epochs))
        if head.epochs != before:
            raise ValueError(
                f"head.epochs={head.epochs}: the head stage of {run_dir} has ended: resume it with head.epochs={before}"
            )
        current, trained = finetune, begun - head.epochs
    if current.epochs < trained:
        raise ValueError(
            f"{current.name}.epochs={current.epochs}: expected at least {trained}, the epochs that {run_dir} has begun"
        )


def check_stages(
    plans: Sequence[StagePlan], data: ImageDataModule, trainer: Trainer, reject: float | None = None
) -> None:
    """Check that train and val have images, the ranks can share a step, and a resumed epoch has the steps of its start.

    With `reject`, also check that val has enough images for a threshold.

    Raises:
        ValueError: One of these is not so.
    """
    data.setup("fit")
    data.per_rank_batch_size(trainer.world_size)
    if reject:
        rejection_threshold(torch.zeros(data.counts("val").total()), reject)
    for plan in plans:
        plan.stage.check_processes(trainer.world_size)
    found = plans[0].stage.order_key or epoch_steps_key(data, trainer.world_size)
    if plans[0].epoch_steps not in (None, found):
        raise ValueError(
            f"this run stopped inside an epoch with {plans[0].epoch_steps}, found {found}: "
            "resume it with the settings that it had"
        )


def train_stage(plan: StagePlan, task: FineTuning, data: ImageDataModule, trainer: Trainer) -> None:
    """Train one stage.

    Args:
        plan: The stage.
        task: The training of the network, as the previous stage left it.
        data: The images.
        trainer: The Trainer of the run, for all of its stages.
    """
    batches: LightningDataModule = data
    if plan.remaining:
        batches = begin_stage(task, plan.stage, data, steps_per_batch(trainer))
    else:
        task.start(plan.stage)
    # A stage before this one may have ended early.
    trainer.fit_loop.max_epochs = plan.end_epoch if plan.checkpoint else task.progress.epochs_done + plan.remaining
    trainer.fit(task, batches, ckpt_path=plan.checkpoint, weights_only=True)


def begin_stage(task: FineTuning, stage: Stage, data: ImageDataModule, steps: int) -> LightningDataModule:
    """Start a stage, and return what loads its batches; see `HeadStage.batches`."""
    task.start(stage)  # before the batches: a network is split in the mode in which it is trained
    inputs, batches = stage.batches(task.network, data, steps)
    task.start(stage, inputs)
    return batches


def steps_per_batch(trainer: Trainer) -> int:
    """Return how many optimizer steps a batch of cached features holds: 1 if an option acts between two steps."""
    is_plain = all(getattr(trainer, name) == value for name, value in _MULTI_STEP_OPTIONS.items())
    return _STEPS_PER_BATCH if is_plain else 1
