"""The place of the learning-rate schedule in its stage, also after a resume with other epochs, batches or rates.

A resumed run counts the steps of the stage by its own settings: an epoch that is done has the steps that it would have
today. If anything that the schedule depends on has changed, a new schedule is stepped to that place. So the learning
rates, and the momentum that a schedule may move, are those that an uninterrupted run has at the same share of the
stage, for any schedule.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lightning import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flowers.training.progress import Progress
from flowers.training.stages import Inputs, Stage

Schedule = Callable[[Optimizer, int], LRScheduler]  # from the optimizer and the steps of the stage; stepped every step


class StageSteps(NamedTuple):
    """The optimizer steps of a stage.

    Attributes:
        done: Steps before this session, by the settings of today.
        left: Steps of this session.
    """

    done: int
    left: int


def stage_steps(
    stage: Stage, inputs: Inputs, trainer: Trainer, progress: Progress, batches_done: int = 0
) -> StageSteps:
    """Return the steps of a stage; fewer are left if `trainer.max_steps` ends the run inside of it.

    Args:
        stage: The stage.
        inputs: What its batches are.
        trainer: The Trainer, with the epochs up to the end of the stage.
        progress: What is done of the run.
        batches_done: The batches that are done of the next epoch.
    """
    _ = trainer.estimated_stepping_batches  # loads the data, so that the batches are known
    accumulated, limit = trainer.accumulate_grad_batches, trainer.max_steps
    epoch_steps = inputs.epoch_steps or math.ceil(trainer.num_training_batches / accumulated)
    epochs_before = (trainer.max_epochs or 1) - stage.epochs
    done = (progress.epochs_done - epochs_before) * epoch_steps + batches_done // accumulated
    left = stage.epochs * epoch_steps - done
    return StageSteps(done, left if limit == -1 else min(left, max(1, limit - progress.steps)))


def batches_done(checkpoint: Mapping[str, Any] | None) -> int:
    """Return the training batches of the next epoch that are done at a checkpoint: none between two epochs."""
    if not checkpoint or "mid_epoch" not in checkpoint:
        return 0
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"])


def make_schedule(
    factory: Schedule,
    optimizer: Optimizer,
    steps: StageSteps,
    config: Mapping[str, Any],
    checkpoint: dict[str, Any] | None,
) -> tuple[LRScheduler, str]:
    """Return the schedule of a stage, and a text that says what it depends on, for the next checkpoint.

    If it does not depend on the same in the checkpoint of a resumed run, the checkpoint gets the states of this
    schedule, before they are restored.

    Args:
        factory: Makes the schedule.
        optimizer: The optimizer of the stage, as it is built.
        steps: The steps of the stage.
        config: The configuration of the run.
        checkpoint: The last checkpoint, if the run is resumed.

    Raises:
        ValueError: The optimizer is of another kind than that of the checkpoint, or trains other weights.
    """
    groups = [_hyperparameters(group) for group in optimizer.param_groups]
    basis = repr((sum(steps), config.get("scheduler"), groups))
    schedule = factory(optimizer, sum(steps))
    if checkpoint is None or not steps.left:  # at the end of a stage, the next one starts with its own optimizer
        return schedule, basis
    _check_optimizer(optimizer, config, checkpoint)
    (state,), (restored,) = checkpoint["lr_schedulers"], checkpoint["optimizer_states"]
    if checkpoint.get("schedule") == basis and state.get("last_epoch") == steps.done:
        return schedule, basis
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch expects that the optimizer has made these steps
        for _ in range(steps.done):
            schedule.step()
    checkpoint["lr_schedulers"] = [schedule.state_dict()]
    for group, new in zip(restored["param_groups"], optimizer.param_groups, strict=True):
        weights = group["params"]
        group.clear()
        group.update(_hyperparameters(new), params=weights)
    return schedule, basis


def _check_optimizer(optimizer: Optimizer, config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    before = (checkpoint["hyper_parameters"]["config"] or {}).get("optimizer", {}).get("_target_")
    target = config.get("optimizer", {}).get("_target_")
    if before and target and before != target:
        raise ValueError(
            f"optimizer._target_={target}: this run stopped inside a stage with {before}, and another optimizer "
            "cannot continue with its state: resume it with the optimizer that it had"
        )
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (optimizer.param_groups, checkpoint["optimizer_states"][0]["param_groups"])
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(
            "this run stopped inside a stage that trains other weights, or in other groups: resume it with the "
            "finetune.depth, finetune.layer_decay and finetune.norm_weight_decay that it had"
        )


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
