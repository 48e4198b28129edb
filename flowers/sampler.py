"""The order of training, a function of seed and epoch alone, so that a resumed run sees what it would have seen."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import Sampler

FILLING = -1  # an index, and the label of the item there: no photo, neither learned from nor scored


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields `(index, seed)` for each of `length` items, in an order drawn anew for each epoch.

    The seed belongs to that item in that epoch: an augmentation drawn from it does not depend on which worker draws it,
    how many there are, or what was drawn before. Lightning calls `set_epoch`.

    Of `ranks` processes that train together, number `rank` takes every so-manieth item; FILLING fills up the last
    round, so that all take as many.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.length, self.seed, self.rank, self.ranks = length, seed, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Turns to `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.ranks)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        seeds = torch.randint(2**62, (self.length,), generator=generator)
        keys = list(zip(order.tolist(), seeds.tolist(), strict=True))
        keys += [(FILLING, 0)] * (len(self) * self.ranks - self.length)
        return iter(keys[self.rank :: self.ranks])


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


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for what `epoch` draws in process `rank`; no two triples of small numbers share one."""
    # Knuth's multiplier spreads ranks over the 32 bits that a CPU's generator takes of a seed.
    return (seed * 1_000_003 + epoch + rank * 2_654_435_761) % 2**32
