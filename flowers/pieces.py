"""Long work in pieces, each written as it is done: a kill costs the last one only."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

SECONDS = 30.0  # of work in a piece


def timed(items: Iterable[T]) -> Iterator[list[T]]:
    """Yields `items` in lists, each of what came within `SECONDS`."""
    piece: list[T] = []
    start = time.monotonic()
    for item in items:
        piece.append(item)
        if time.monotonic() - start >= SECONDS:
            yield piece
            piece, start = [], time.monotonic()
    if piece:
        yield piece
