"""The order of photos from shards: for training well mixed, and yet each shard is needed for a short while only."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Keys = Sequence[int] | Sequence[tuple[int, int]]


class ShardOrder(Sampler[list[tuple[int, int]]]):
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
        ahead: told the number of each shard some time before it is needed.

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
        ahead: Callable[[int], None] = lambda shard: None,
    ) -> None:
        if len(shards) < ranks:
            raise ValueError(f"{len(shards)} photos to train on: wanted at least one for each of {ranks} processes")
        self.shards, self.batch_size, self.seed = shards, batch_size, seed
        self.rank, self.ranks, self.mixed, self.ahead = rank, ranks, mixed, ahead
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
        announce = _announcing(self.shards[own], len(order) // len(place) + 1, self.ahead)
        given = 0
        for batch in np.array_split(own, len(self)):
            announce(given)
            given += len(batch)
            yield list(zip(batch.tolist(), seeds[batch].tolist(), strict=True))


class InTurn(Sampler[Any]):
    """`keys` as they are, each one's shard announced about a shard's photos before.

    Args:
        keys: an index each, or `(index, seed)`; one below 0 counts as 0.
        shards: the number of each photo's shard, (N,).
        ahead: told the number of each shard some time before it is needed.
    """

    def __init__(self, keys: Keys, shards: NDArray[np.int64], ahead: Callable[[int], None]) -> None:
        self.keys, self.shards, self.ahead = keys, shards, ahead

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Any]:
        indices = [key[0] if isinstance(key, tuple) else key for key in self.keys]
        needed = self.shards[np.maximum(indices, 0)]
        announce = _announcing(needed, len(needed) // max(len(np.unique(needed)), 1) + 1, self.ahead)
        for place, key in enumerate(self.keys):
            announce(place)
            yield key


def _announcing(needed: NDArray[np.int64], lead: int, ahead: Callable[[int], None]) -> Callable[[int], None]:
    """Of the shards that items need, in turn: at an item's place, `ahead` is told those of so many items to come."""
    shards, first = np.unique(needed, return_index=True)
    coming = sorted(zip(first.tolist(), shards.tolist(), strict=True), reverse=True)

    def announce(place: int) -> None:
        while coming and coming[-1][0] <= place + lead:
            ahead(coming.pop()[1])

    return announce
