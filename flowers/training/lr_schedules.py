"""Learning-rate schedules over the optimizer steps of one stage.

To add a schedule, write a function of an optimizer and the number of steps, and a file `conf/scheduler/NAME.yaml`
that names it. T is `total_steps` and t the step, from 0.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Keep the learning rate: factor 1."""
    return LambdaLR(optimizer, lambda step: 1.0)


def step(optimizer: Optimizer, total_steps: int, drops: int = 2, gamma: float = 0.1) -> LRScheduler:
    """Multiply by `gamma` at each of `drops` evenly spaced steps: factor gamma^floor(t / ceil(T / (drops + 1)))."""
    return StepLR(optimizer, max(1, math.ceil(total_steps / (drops + 1))), gamma)


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05) -> LRScheduler:
    """Warm up linearly for w = `warmup` * T steps, then decay: factor (1 + cos(pi * (t - w) / (T - w))) / 2."""
    warmup_steps = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, total_steps: int, warmup: float = 0.3) -> LRScheduler:
    """Follow the one-cycle policy (arXiv:1708.07120): rise for `warmup` * T steps, then fall to almost 0."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=total_steps, pct_start=warmup)
