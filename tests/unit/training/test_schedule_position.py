"""A run that is resumed with other settings has the rates of a whole run with these settings."""

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from flowers.training.lr_schedules import constant, cosine, one_cycle, step
from flowers.training.progress import Progress
from flowers.training.schedule_position import Schedule, StageSteps, make_schedule, stage_steps
from flowers.training.stages import HeadStage, Inputs


def warmed_up(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    first = max(1, total_steps // 10)
    parts = [LinearLR(optimizer, 0.1, total_iters=first), CosineAnnealingLR(optimizer, max(1, total_steps - first))]
    return SequentialLR(optimizer, parts, [first])


def exponential(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return ExponentialLR(optimizer, 0.01 ** (1 / total_steps))


def cycled(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return OneCycleLR(optimizer, 3.0, total_steps=total_steps)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "step": step,
    "step of five drops": partial(step, drops=5, gamma=0.5),
    "cosine": cosine,
    "cosine without warmup": partial(cosine, warmup=0.0),
    "one_cycle": one_cycle,
    "OneCycleLR": cycled,
    "StepLR": lambda optimizer, total: StepLR(optimizer, max(1, total // 4)),
    "CosineAnnealingLR": CosineAnnealingLR,
    "PolynomialLR": PolynomialLR,
    "ExponentialLR": exponential,
    "SequentialLR": warmed_up,
    "a stranger's": lambda optimizer, total: LambdaLR(optimizer, lambda t: (1 + 9 * t / total) ** -0.5),
}
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda groups: Adam(groups, lr=0.003),
}


class Lengths(NamedTuple):
    """What decides the number of steps: batches are those of an epoch, after any limit."""

    epochs: int = 3
    batches: int = 8
    accumulated: int = 1
    max_steps: int = -1


class Session:
    """A session of a run of one stage, without a network: only what the schedule moves."""

    def __init__(
        self, schedule: str, optimizer: str, lengths: Lengths, checkpoint: dict[str, Any] | None = None, lr: float = 0.1
    ) -> None:
        self.lengths, self.progress = lengths, Progress(**checkpoint["progress"]) if checkpoint else Progress()
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
        self.optimizer = OPTIMIZERS[optimizer]([{"params": weights[:2], "lr": lr}, {"params": weights[2:]}])
        self.batch = checkpoint["batch"] if checkpoint else 0
        trainer: Any = SimpleNamespace(
            estimated_stepping_batches=0,
            num_training_batches=lengths.batches,
            accumulate_grad_batches=lengths.accumulated,
            max_steps=lengths.max_steps,
            max_epochs=lengths.epochs,
        )
        steps = stage_steps(HeadStage(lengths.epochs), Inputs(), trainer, self.progress, self.batch)
        self.schedule, self.basis = make_schedule(SCHEDULES[schedule], self.optimizer, steps, {}, checkpoint)
        self.left = steps.left
        if checkpoint:  # as Lightning does
            self.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
            self.schedule.load_state_dict(checkpoint["lr_schedulers"][0])

    def run(self, batches: int | None = None) -> list[list[dict[str, Any]]]:
        """Train, at most some batches; return the hyperparameters of each step."""
        seen = []
        while self.left and (batches is None or batches > 0):
            self.batch += 1
            batches = None if batches is None else batches - 1
            if self.batch % self.lengths.accumulated == 0 or self.batch == self.lengths.batches:
                groups = self.optimizer.param_groups
                seen.append([{name: value for name, value in group.items() if name != "params"} for group in groups])
                self.optimizer.step()
                self.schedule.step()
                self.progress.steps += 1
                self.left -= 1
            if self.batch == self.lengths.batches:
                self.batch, self.progress.epochs_done = 0, self.progress.epochs_done + 1
        return seen

    def checkpoint(self) -> dict[str, Any]:
        """What last.ckpt holds, in the names of this class where Lightning has its own."""
        return copy.deepcopy(
            {
                "progress": self.progress.to_dict(),
                "optimizer_states": [self.optimizer.state_dict()],
                "lr_schedulers": [self.schedule.state_dict()],
                "hyper_parameters": {"config": None},
                "schedule": self.basis,
                "batch": self.batch,
            }
        )


EXAMPLES = [Phase.explicit, Phase.reuse, Phase.generate]  # an example is short as it is
rates = st.sampled_from([0.1, 0.01])
lengths = st.builds(Lengths, st.integers(3, 8), st.integers(1, 12), st.integers(1, 4), st.just(-1))


@given(st.sampled_from([*SCHEDULES]), st.sampled_from([*OPTIMIZERS]), lengths, lengths, st.integers(1, 2), rates)
@settings(max_examples=80, deadline=None, phases=EXAMPLES)
def test_resumed_run_has_the_hyperparameters_of_a_whole_run_of_its_settings(
    schedule: str, optimizer: str, before: Lengths, after: Lengths, epochs: int, lr: float
):
    killed = Session(schedule, optimizer, before)
    killed.run(epochs * before.batches)
    rest = Session(schedule, optimizer, after, killed.checkpoint(), lr).run()
    whole = Session(schedule, optimizer, after, lr=lr).run()
    assert rest == whole[-len(rest) :]
    assert len(rest) == (after.epochs - epochs) * -(-after.batches // after.accumulated)


@given(
    schedule=st.sampled_from([*SCHEDULES]),
    batches=st.integers(1, 12),
    kills=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    accumulated=st.integers(1, 4),
    epochs=st.integers(3, 8),
)
@settings(max_examples=80, deadline=None, phases=EXAMPLES)
def test_resume_at_any_batch_takes_other_epochs_and_another_accumulation(
    schedule: str, batches: int, kills: list[int], accumulated: int, epochs: int
):
    session = Session(schedule, "sgd", Lengths(8, batches))
    for kill in kills:
        session.run(min(kill, batches))
        if not session.left or session.progress.epochs_done >= 3:
            break
        session = Session(schedule, "sgd", Lengths(8, batches, 1), session.checkpoint())
    after = Lengths(max(epochs, session.progress.epochs_done + 1), batches, accumulated)
    resumed = Session(schedule, "sgd", after, session.checkpoint())
    rest, whole = resumed.run(), Session(schedule, "sgd", after).run()
    assert rest == whole[-len(rest) :] if rest else not resumed.left


@pytest.mark.parametrize("has_basis", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resume_with_nothing_changed_keeps_every_bit(schedule: str, has_basis: bool):
    """Checkpoints of earlier versions do not say what the schedule depended on."""
    session = Session(schedule, "sgd", Lengths())
    session.run(13)
    checkpoint = session.checkpoint()
    if not has_basis:
        del checkpoint["schedule"]
    resumed = Session(schedule, "sgd", Lengths(), checkpoint)
    assert resumed.run() == session.run()


def test_resume_with_nothing_changed_keeps_what_a_callback_has_set():
    session = Session("step", "sgd", Lengths())
    session.run(13)
    session.optimizer.param_groups[0]["lr"] *= 0.5
    resumed = Session("step", "sgd", Lengths(), session.checkpoint())
    assert resumed.run() == session.run()


@pytest.mark.parametrize("schedule", ["step", "cosine", "one_cycle"])
def test_schedule_ends_with_max_steps_also_after_a_resume_with_other_batches(schedule: str):
    session = Session(schedule, "sgd", Lengths(9, 8, 1, 40))
    session.run(16)
    rest = Session(schedule, "sgd", Lengths(9, 4, 1, 40), session.checkpoint()).run()
    whole = Session(schedule, "sgd", Lengths(9, 4, 1, 40)).run()
    assert len(rest) == 40 - 16
    assert rest[-1][0]["lr"] == pytest.approx(whole[-1][0]["lr"], abs=0.01 * whole[0][0]["initial_lr"])


def test_other_weights_and_another_optimizer_are_refused():
    session = Session("cosine", "sgd", Lengths())
    session.run(8)
    checkpoint = session.checkpoint()
    checkpoint["optimizer_states"][0]["param_groups"].pop()
    with pytest.raises(ValueError, match=r"resume it with the finetune\.depth"):
        Session("cosine", "sgd", Lengths(), checkpoint)
    checkpoint = session.checkpoint() | {"hyper_parameters": {"config": {"optimizer": {"_target_": "torch.optim.SGD"}}}}
    with pytest.raises(ValueError, match=r"inside a stage with torch\.optim\.SGD, and another"):
        make_schedule(
            cosine, session.optimizer, StageSteps(8, 16), {"optimizer": {"_target_": "torch.optim.Adam"}}, checkpoint
        )
