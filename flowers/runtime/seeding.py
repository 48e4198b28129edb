"""Seeds for everything that is drawn at random."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PADDING_INDEX = -1  # an index, and the label of the item there: no photo, neither learned from nor scored


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
