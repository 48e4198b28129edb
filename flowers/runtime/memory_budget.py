"""A number of bytes that the threads of a process share."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Lets threads use up to `limit` bytes together: a thread waits, in the order of arrival, until its share is free.

    Whoever needs more than the limit works alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reset()
        if hasattr(os, "register_at_fork"):  # the threads that hold shares do not survive a fork
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._turn, self._changed, self._used = threading.Lock(), threading.Condition(), 0

    @contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Hold `size` bytes. The block must not ask for another share."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self.limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
