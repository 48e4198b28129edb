"""Seeds for everything that is drawn at random."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PADDING_INDEX = -1  # index and label of a padding item, which is neither trained on nor scored


def seed_device(seed: int, device_type: str) -> None:
    """Seed the generators of torch for draws on the CPU, and on a device of another type if one is named."""
    if device_type == "cpu":
        # Not torch.manual_seed: before CUDA is initialized, it records the call stack, which takes milliseconds.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator of torch inside the block, and restore its state after it."""
    state = torch.get_rng_state()
    seed_device(seed, "cpu")
    try:
        yield
    finally:
        torch.set_rng_state(state)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return a seed for the random draws of an epoch on a rank; small arguments never share a seed."""
    # Knuth's multiplier spreads the ranks over the 32 bits of a seed that the CPU generator uses.
    return (seed * 1_000_003 + epoch + rank * 2_654_435_761) % 2**32
