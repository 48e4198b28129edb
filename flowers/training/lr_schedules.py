"""Learning-rate schedules over the optimizer steps of one stage."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The learning rate that the optimizer has."""
    return LambdaLR(optimizer, lambda step: 1.0)


def step(optimizer: Optimizer, total_steps: int, drops: int = 2, gamma: float = 0.1) -> LRScheduler:
    """Times `gamma` at each of `drops` evenly spaced moments."""
    return StepLR(optimizer, max(1, math.ceil(total_steps / (drops + 1))), gamma)


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05) -> LRScheduler:
    """Rises linearly over the share `warmup` of the steps, then falls as half a cosine towards 0."""
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total_steps - rising)))

    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, total_steps: int, warmup: float = 0.3) -> LRScheduler:
    """Smith's one-cycle policy (arXiv:1708.07120): up over the share `warmup`, down to almost nothing."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=total_steps, pct_start=warmup)
