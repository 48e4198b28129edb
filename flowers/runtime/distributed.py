"""Collective operations that also work in a single process."""

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the world size; (0, 1) in a single process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def broadcast_object(value: T) -> T:
    """Return the value of rank 0 on all ranks."""
    if rank_and_world_size()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def all_gather_object(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks, on all ranks."""
    values = [value] * rank_and_world_size()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def local_slice(items: Sequence[T], padding: T) -> list[T]:
    """Return the contiguous slice of `items` that this rank processes, which touches few shards.

    Args:
        items: The items of all ranks.
        padding: Is appended where needed, so that all slices have the same length.
    """
    rank, world_size = rank_and_world_size()
    start, end = (len(items) * end // world_size for end in (rank, rank + 1))
    return [*items[start:end], *[padding] * (math.ceil(len(items) / world_size) - (end - start))]
