"""Training's batches, from where training stands."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler


class EpochLoader(DataLoader[Any]):
    """A DataLoader whose epoch begins when its first batch is asked for, and there where a resumed run had come.

    Lightning wants an iterator before it has restored a checkpoint: the workers of a plain DataLoader would by then be
    at work on the first epoch's batches, whichever epoch goes on.

    Args:
        dataset: of what the batches consist.
        batches: what each consists of; its `sampler`, or else itself, is told the epoch.
        done: how many batches of this epoch are behind the run.
        settings: other ones of a DataLoader.
    """

    def __init__(
        self, dataset: Dataset[Any], batches: BatchSampler | Sampler[Any], done: Callable[[], int], **settings: Any
    ) -> None:
        super().__init__(dataset, batch_sampler=_Left(batches, done), **settings)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: it starts nothing yet
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `done` knows. That there is one tells Lightning that an epoch can be gone on with."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing from it."""


class _Left(Sampler[Any]):
    """The batches that are left of an epoch; its length is that of the whole one."""

    def __init__(self, batches: BatchSampler | Sampler[Any], done: Callable[[], int]) -> None:
        self.batches, self.done = batches, done
        self.sampler = getattr(batches, "sampler", batches)  # where Lightning looks for `set_epoch`

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.done(), None)
