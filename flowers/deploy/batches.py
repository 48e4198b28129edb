"""Answer requests that wait at the same time in one batch."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchThread:
    """The thread that computes all batches, one after another. It belongs to one event loop.

    PyTorch keeps threads and memory for each thread that calls it.
    """

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(1)
        self.turn = asyncio.Lock()


class Batches(Generic[Item, Result]):
    """A function of one item, for many threads: it computes the items that wait together as one batch.

    An item whose caller was cancelled meanwhile is left out.

    Args:
        compute: Computes the results of a batch of items.
        size: The largest batch.
        thread: Where it is computed.
    """

    def __init__(self, compute: Callable[[Sequence[Item]], Sequence[Result]], size: int, thread: BatchThread) -> None:
        self._compute, self._size, self._thread = compute, size, thread
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """Return the result of an item."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, result))
        if self._running is None:
            self._running = loop.create_task(self._run())
        return await result

    async def _run(self) -> None:
        while self._waiting:
            async with self._thread.turn:  # the batch is chosen when the thread is free for it
                self._waiting = [each for each in self._waiting if not each[1].cancelled()]
                batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
                if batch:
                    await self._answer(batch)
        self._running = None

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop, items = asyncio.get_running_loop(), [item for item, _ in batch]
        try:
            results = await loop.run_in_executor(self._thread.executor, self._compute, items)
        except Exception as error:  # it belongs to the requests of the batch
            for _, future in batch:
                if not future.cancelled():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.cancelled():
                    future.set_result(result)
