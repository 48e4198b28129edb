"""The stages of a run, and where a resumed run goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning import Trainer

from flowers.data.datamodule import ImageDataModule
from flowers.models.classifier import Stage, epochs_done, read_checkpoint
from flowers.runtime.run_folder import LAST_CHECKPOINT
from flowers.training.checkpointing import epoch_steps_key


class StagePlan(NamedTuple):
    """A stage to train: its length in epochs, those left of it, the run's epoch at its end, what to go on from.

    `inside` are the steps (`checkpoints.steps`) of the epoch that the checkpoint lies inside of.
    """

    stage: Stage
    epochs: int
    left: int
    until: int
    checkpoint: Path | None = None
    inside: str | None = None


def plan_stages(head_epochs: int, finetune_epochs: int, run: Path) -> list[StagePlan]:
    """The stages that are left: all of them, or in a run folder with a last checkpoint those from there on.

    A stage that ended just where the checkpoint stands is among them, with no epoch left: fitting it restores the
    state that the next one starts from.
    """
    if min(head_epochs, finetune_epochs) < 0 or not head_epochs + finetune_epochs:
        raise ValueError(
            f"head.epochs={head_epochs} finetune.epochs={finetune_epochs}: wanted at least one epoch in all"
        )
    last = run / LAST_CHECKPOINT
    kept = read_checkpoint(last) if last.exists() else None
    done, begun = (epochs_done(kept), kept.get("begun")) if kept else (0, None)
    if done > head_epochs + finetune_epochs:
        raise ValueError(
            f"{run} has {done} epochs behind it: wanted head.epochs and finetune.epochs of no fewer together, "
            f"found {head_epochs} and {finetune_epochs}"
        )
    stages: list[tuple[Stage, int, int]] = [
        ("head", head_epochs, head_epochs),
        ("finetune", finetune_epochs, head_epochs + finetune_epochs),
    ]
    left = [
        StagePlan(stage, epochs, min(epochs, until - done), until)
        for stage, epochs, until in stages
        if epochs and (until > done or (until == done and not begun))  # begun: the next stage's epoch
    ]
    if kept:
        left[0] = left[0]._replace(checkpoint=last, inside=begun["steps"] if begun else None)
    return left


def check_stages(legs: Sequence[StagePlan], data: ImageDataModule, trainer: Trainer, views: int) -> None:
    """Makes sure that steps can be shared, and that an epoch that is gone on with inside has the steps it began with.

    Raises ValueError where not. `views` of each photo are kept in the head stage.
    """
    data.per_rank_batch_size(trainer.world_size)
    kept = legs[0].stage == "head" and views
    found = f"head.cached_views={views}" if kept else epoch_steps_key(data, trainer.world_size)
    if legs[0].inside not in (None, found):
        raise ValueError(
            f"this run stopped inside an epoch with {legs[0].inside}, found {found}: resume it with what it had"
        )
