"""The order of training, a function of seed and epoch alone, so that a resumed run sees what it would have seen."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields `(index, seed)` for each of `length` items, in an order drawn anew for each epoch.

    The seed belongs to that item in that epoch: an augmentation drawn from it does not depend on which worker draws it,
    how many there are, or what was drawn before. Lightning calls `set_epoch`.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Turns to `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        seeds = torch.randint(2**62, (self.length,), generator=generator)
        return zip(order.tolist(), seeds.tolist(), strict=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generator of the CPU starts from `seed` in the block, and is as before after it."""
    state = torch.get_rng_state()
    # Not torch.manual_seed: where CUDA is not in use it notes down the call stack, at more than a millisecond a call.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for what `epoch` draws; no two pairs of small numbers share one."""
    return seed * 1_000_003 + epoch
