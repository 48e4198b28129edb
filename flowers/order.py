"""The order of training from shards: well mixed, and yet each shard is needed for a short while only."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


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
        shards, first = np.unique(self.shards[own], return_index=True)
        coming = sorted(zip(first.tolist(), shards.tolist(), strict=True))
        lead, given = len(order) // len(place) + 1, 0  # photos: about a shard's
        for batch in np.array_split(own, len(self)):
            while coming and coming[0][0] <= given + lead:
                self.ahead(coming.pop(0)[1])
            given += len(batch)
            yield list(zip(batch.tolist(), seeds[batch].tolist(), strict=True))
