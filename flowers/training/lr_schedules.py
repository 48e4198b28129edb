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
    """Warm up linearly for w = max(1, round(`warmup` * T)) steps, then decay to almost 0.

    The factor is (t + 1) / w for t < w, and (1 + cos(pi * (t - w) / (T - w))) / 2 from then on.
    """
    warmup_steps = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, total_steps: int, warmup: float = 0.3) -> LRScheduler:
    """Follow the one-cycle policy (arXiv:1708.07120): rise until step w = `warmup` * T - 1, then fall to almost 0.

    With c(p) = (1 - cos(pi * p)) / 2, the factor is 1/25 + 24/25 * c(t / w) up to step w. From then on, it falls from 1
    to 1 / 250,000 in step T - 1, with c((t - w) / (T - 1 - w)). PyTorch also moves the momentum the opposite way, from
    0.95 to 0.85 and back.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=total_steps, pct_start=warmup)
