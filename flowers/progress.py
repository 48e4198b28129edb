"""How far things have come: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from flowers import processes

T = TypeVar("T")


def bar(items: Iterable[T], doing: str, total: int | None = None) -> Iterable[T]:
    """Yields `items`, with a bar on standard error if that is a terminal and nothing at all elsewhere."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    is_shown = sys.stderr.isatty() and processes.is_first()
    return track(items, doing, total=total, console=Console(file=sys.stderr), disable=not is_shown)
