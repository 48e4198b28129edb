"""Collective operations that also work in a single process."""

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process and how many there are: (0, 1) where it is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def broadcast_object(value: T) -> T:
    """What the first process gives, in all of them."""
    if rank_and_world_size()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def all_gather_object(value: T) -> list[T]:
    """What each process gives, in all of them."""
    values = [value] * rank_and_world_size()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def local_slice(items: Sequence[T], filling: T) -> list[T]:
    """This process's stretch of `items`, and so few of their shards; `filling` makes it as many in each process."""
    number, ranks = rank_and_world_size()
    start, end = (len(items) * end // ranks for end in (number, number + 1))
    return [*items[start:end], *[filling] * (math.ceil(len(items) / ranks) - (end - start))]
