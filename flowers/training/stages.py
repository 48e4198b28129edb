"""The stages of a run: which are left, where a resumed run continues, and how many steps they take."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule, Trainer

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.rejection import rejection_threshold
from flowers.features.activations import ActivationDataModule, split_backbone
from flowers.features.datamodule import FeatureDataModule
from flowers.models.classifier import ImageClassifier, Stage, read_checkpoint
from flowers.runs.run_folder import LAST_CHECKPOINT
from flowers.training.checkpointing import epoch_steps_key

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
        stage: Its name.
        epochs: Its length.
        remaining: The epochs that are left to train.
        end_epoch: The epochs of the run once the stage has ended.
        checkpoint: The checkpoint to resume from.
        epoch_steps: The `epoch_steps_key` of the epoch inside which the checkpoint was written; None between epochs.
    """

    stage: Stage
    epochs: int
    remaining: int
    end_epoch: int
    checkpoint: Path | None = None
    epoch_steps: str | None = None


def plan_stages(head_epochs: int, finetune_epochs: int, run_dir: Path) -> list[StagePlan]:
    """Return the stages that are left: all of them, or those from the last checkpoint in `run_dir` onwards.

    A stage that ended exactly at the checkpoint is included with no remaining epoch: fitting it restores the state
    from which the next stage starts. A stage that ended early has the epochs that it trained.

    Raises:
        ValueError: There is no epoch to train, or the run has more epochs than requested; or the checkpoint cannot be
            read.
    """
    if min(head_epochs, finetune_epochs) < 0 or not head_epochs + finetune_epochs:
        raise ValueError(
            f"head.epochs={head_epochs} finetune.epochs={finetune_epochs}: expected at least 0 each, and 1 in all"
        )
    last = run_dir / LAST_CHECKPOINT
    checkpoint = read_checkpoint(last) if last.exists() else None
    done, mid_epoch = (checkpoint["progress"]["epochs_done"], checkpoint.get("mid_epoch")) if checkpoint else (0, None)
    ended = checkpoint["progress"].get("ended", {}) if checkpoint else {}
    head_epochs, finetune_epochs = ended.get("head", head_epochs), ended.get("finetune", finetune_epochs)
    if done > head_epochs + finetune_epochs:
        raise ValueError(
            f"head.epochs={head_epochs} finetune.epochs={finetune_epochs}: expected at least {done} in all, "
            f"the epochs that {run_dir} has already trained"
        )
    stages: list[tuple[Stage, int, int]] = [
        ("head", head_epochs, head_epochs),
        ("finetune", finetune_epochs, head_epochs + finetune_epochs),
    ]
    plans = [
        StagePlan(stage, epochs, min(epochs, end - done), end)
        for stage, epochs, end in stages
        if epochs and (end > done or (end == done and not mid_epoch))  # mid_epoch: inside the next stage
    ]
    if checkpoint:
        plans[0] = plans[0]._replace(checkpoint=last, epoch_steps=mid_epoch["epoch_steps"] if mid_epoch else None)
    return plans


def check_stages(
    plans: Sequence[StagePlan],
    data: ImageDataModule,
    trainer: Trainer,
    cached_views: Mapping[Stage, int],
    reject: float | None = None,
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
    if cached_views["finetune"] and trainer.world_size > 1:
        raise ValueError(
            f"finetune.cached_views={cached_views['finetune']} with {trainer.world_size} processes: expected "
            "trainer.devices=1, or finetune.cached_views=0"
        )
    is_cached = plans[0].stage == "head" and cached_views["head"]
    found = f"head.cached_views={cached_views['head']}" if is_cached else epoch_steps_key(data, trainer.world_size)
    if plans[0].epoch_steps not in (None, found):
        raise ValueError(
            f"this run stopped inside an epoch with {plans[0].epoch_steps}, found {found}: "
            "resume it with the settings that it had"
        )


def train_stage(
    plan: StagePlan,
    model: ImageClassifier,
    data: ImageDataModule,
    trainer: Trainer,
    cached_views: Mapping[Stage, int],
    features: Mapping[str, Any],
) -> None:
    """Train one stage.

    Args:
        plan: The stage.
        model: The classifier, as the previous stage left it.
        data: The images.
        trainer: The Trainer of the run, for all of its stages.
        cached_views: Cached views of each training image by stage; 0 computes them anew in each epoch.
        features: The settings of the feature cache.
    """
    steps = steps_per_batch(trainer)
    model.set_stage(plan.stage, plan.epochs)
    if plan.stage == "head" and cached_views["head"] and plan.remaining and steps > 1:
        total_steps = math.ceil(data.counts("train").total() / data.batch_size) * plan.epochs
        model.set_stage(plan.stage, plan.epochs, step_size=data.batch_size, total_steps=total_steps)
    batches = stage_batches(plan.stage, model, data, cached_views, features, steps) if plan.remaining else data
    # A stage before this one may have ended early.
    trainer.fit_loop.max_epochs = plan.end_epoch if plan.checkpoint else model.epochs_done + plan.remaining
    trainer.fit(model, batches, ckpt_path=plan.checkpoint, weights_only=True)
    model.last_blocks = None


def stage_batches(
    stage: Stage,
    model: ImageClassifier,
    data: ImageDataModule,
    cached_views: Mapping[Stage, int],
    features: Mapping[str, Any],
    steps: int,
) -> LightningDataModule:
    """Return what a stage trains on: images, cached features or cached activations, on which the model then works.

    Args:
        stage: The stage.
        model: The classifier, in this stage.
        data: The images.
        cached_views: See `train_stage`.
        features: The settings of the feature cache.
        steps: The optimizer steps for which a batch of cached features holds images.
    """
    if stage == "head" and cached_views["head"]:
        return FeatureDataModule(data, model, cached_views["head"], **features, steps_per_batch=steps)
    if stage == "finetune" and cached_views["finetune"]:
        assert model.depth is not None
        first_blocks, last_blocks = split_backbone(model.backbone, model.depth)
        model.last_blocks = last_blocks.forward
        return ActivationDataModule(data, model, cached_views["finetune"], first_blocks)
    return data


def steps_per_batch(trainer: Trainer) -> int:
    """Return how many optimizer steps a batch of cached features holds: 1 if an option acts between two steps."""
    is_plain = all(getattr(trainer, name) == value for name, value in _MULTI_STEP_OPTIONS.items())
    return _STEPS_PER_BATCH if is_plain else 1
