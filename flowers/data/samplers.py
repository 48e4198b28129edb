"""The order of training examples: a function of seed and epoch, so that a run can be resumed."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from flowers.runtime.seeding import PADDING_INDEX, epoch_seed


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
        keys += [(PADDING_INDEX, 0)] * (len(self) * self.ranks - self.length)
        return iter(keys[self.rank :: self.ranks])


SampleKeys = Sequence[int] | Sequence[tuple[int, int]]


class ShardShuffleBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(index, seed)`, a function of seed and epoch alone; Lightning calls `set_epoch`.

    The shards come in an order drawn anew for each epoch, and each photo somewhere in the time of its own and the
    `mixed` - 1 shards that follow: so many are open at once, and a photo meets those of twice as many.

    Of `ranks` processes that train together, number `rank` takes a stretch of that order, and so few of the shards.
    Each photo comes once in all of them, in as many batches in each; the batches of an epoch differ by one photo at
    most between two processes and by another one within a process.

    Args:
        shards: the number of each photo's shard, (N,).
        batch_size: photos a batch, at most (one more where that is 1 and the processes' shares are unequal).
        seed: of the order and of the photos' augmentations.
        mixed: shards that are read at the same time.
        prefetch: told the number of each shard some time before it is needed.

    Raises ValueError for fewer photos than processes.
    """

    def __init__(
        self,
        shards: NDArray[np.int64],
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        mixed: int = 16,
        prefetch: Callable[[int], None] = lambda shard: None,
    ) -> None:
        if len(shards) < ranks:
            raise ValueError(f"{len(shards)} photos to train on: wanted at least one for each of {ranks} processes")
        self.shards, self.batch_size, self.seed = shards, batch_size, seed
        self.rank, self.ranks, self.mixed, self.prefetch = rank, ranks, mixed, prefetch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Turns to `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        most, least = math.ceil(len(self.shards) / self.ranks), len(self.shards) // self.ranks
        return min(math.ceil(most / self.batch_size), least)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draw = np.random.default_rng((self.seed, self.epoch))
        place = draw.permutation(int(self.shards.max()) + 1)
        order = np.argsort(place[self.shards] + self.mixed * draw.random(len(self.shards)), kind="stable")
        seeds = draw.integers(2**62, size=len(order))
        ends = [len(order) * rank // self.ranks for rank in (self.rank, self.rank + 1)]
        own = order[slice(*ends)]
        announce = _prefetch_announcer(self.shards[own], len(order) // len(place) + 1, self.prefetch)
        given = 0
        for batch in np.array_split(own, len(self)):
            announce(given)
            given += len(batch)
            yield list(zip(batch.tolist(), seeds[batch].tolist(), strict=True))


class PrefetchingSampler(Sampler[Any]):
    """`keys` as they are, each one's shard announced about a shard's photos before.

    Args:
        keys: an index each, or `(index, seed)`; one below 0 counts as 0.
        shards: the number of each photo's shard, (N,).
        prefetch: told the number of each shard some time before it is needed.
    """

    def __init__(self, keys: SampleKeys, shards: NDArray[np.int64], prefetch: Callable[[int], None]) -> None:
        self.keys, self.shards, self.prefetch = keys, shards, prefetch

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Any]:
        indices = [key[0] if isinstance(key, tuple) else key for key in self.keys]
        needed = self.shards[np.maximum(indices, 0)]
        announce = _prefetch_announcer(needed, len(needed) // max(len(np.unique(needed)), 1) + 1, self.prefetch)
        for place, key in enumerate(self.keys):
            announce(place)
            yield key


def _prefetch_announcer(needed: NDArray[np.int64], lead: int, prefetch: Callable[[int], None]) -> Callable[[int], None]:
    """Of the shards that items need, in turn: at an item's place, `prefetch` is told those of so many items to come."""
    shards, first = np.unique(needed, return_index=True)
    coming = sorted(zip(first.tolist(), shards.tolist(), strict=True), reverse=True)

    def announce(place: int) -> None:
        while coming and coming[-1][0] <= place + lead:
            prefetch(coming.pop()[1])

    return announce


class ResumableDataLoader(DataLoader[Any]):
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
        super().__init__(dataset, batch_sampler=_RemainingBatches(batches, done), **settings)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: it starts nothing yet
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `done` knows. That there is one tells Lightning that an epoch can be gone on with."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing from it."""


class _RemainingBatches(Sampler[Any]):
    """The batches that are left of an epoch; its length is that of the whole one."""

    def __init__(self, batches: BatchSampler | Sampler[Any], done: Callable[[], int]) -> None:
        self.batches, self.done = batches, done
        self.sampler = getattr(batches, "sampler", batches)  # where Lightning looks for `set_epoch`

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.done(), None)
