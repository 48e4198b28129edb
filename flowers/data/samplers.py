"""The order of training images: a function of seed and epoch, so that a run can be resumed."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from flowers.runtime.seeding import PADDING_INDEX, epoch_seed

SampleKeys = Sequence[int] | Sequence[tuple[int, int]]


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields `(index, seed)` for each item, in a new order in each epoch.

    The seed belongs to the item and the epoch. An augmentation that draws from it depends neither on the number of
    workers nor on what was drawn before. Lightning calls `set_epoch`.

    Args:
        length: Number of items.
        seed: Seed of the order and of the seeds of the items.
        rank: Number of this process, which takes every `world_size`-th item.
        world_size: Number of processes. All get the same number of items: PADDING_INDEX fills the last round.
        balanced_labels: Label of each item, for epochs with equally many items of each label; None for epochs with each
            item once. See `balanced_order`.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        balanced_labels: Sequence[int] | None = None,
    ) -> None:
        self.length, self.seed, self.rank, self.world_size = length, seed, rank, world_size
        self.labels = None if balanced_labels is None else torch.tensor(balanced_labels)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        if self.labels is None:
            order = torch.randperm(self.length, generator=generator)
        else:
            order = balanced_order(self.labels, generator)
        seeds = torch.randint(2**62, (self.length,), generator=generator)
        keys = list(zip(order.tolist(), seeds.tolist(), strict=True))
        keys += [(PADDING_INDEX, 0)] * (len(self) * self.world_size - self.length)
        return iter(keys[self.rank :: self.world_size])


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many indices (N,) as there are labels, in random order, with equally many of each label.

    The numbers of two labels differ by at most one, and so do those of two items with the same label: drawing with
    replacement would repeat some images and miss others by chance.

    Args:
        labels: The label (N,) of each item.
        generator: What the order is drawn from.
    """
    items = torch.randperm(len(labels), generator=generator)
    items = items[labels[items].argsort(stable=True)]  # by label, and in random order within a label
    counts = [count for count in labels.bincount().tolist() if count]
    quota, rest = divmod(len(labels), len(counts))
    has_more = (torch.randperm(len(counts), generator=generator) < rest).tolist()
    drawn = [
        part.repeat(math.ceil((quota + more) / len(part)))[: quota + more]
        for part, more in zip(torch.split(items, counts), has_more, strict=True)
    ]
    return torch.cat(drawn)[torch.randperm(len(labels), generator=generator)]


class ShardShuffleBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of `(index, seed)` that read few shards at a time; a function of seed and epoch.

    The shards are in a new random order in each epoch. An image is at a random position within the time of its own
    shard and the next `shuffle_shards` - 1: that many shards are open at once, and an image meets the images of twice
    as many. Lightning calls `set_epoch`.

    Each process takes a contiguous part of the order, and so only some of the shards. Each image occurs once, in one of
    the processes, and all processes have the same number of batches. The batch sizes of an epoch differ by at most one
    between two processes, and by at most one more within a process.

    Args:
        shard_numbers: Shard number of each image, (N,).
        batch_size: Largest number of images in a batch (one more if it is 1 and the parts are unequal).
        seed: Seed of the order and of the seeds of the images.
        rank: Number of this process.
        world_size: Number of processes.
        shuffle_shards: Number of shards that are read at the same time.
        prefetch: Called with each shard number some time before the shard is needed.

    Raises:
        ValueError: If there are fewer images than processes.
    """

    def __init__(
        self,
        shard_numbers: NDArray[np.int64],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle_shards: int = 16,
        prefetch: Callable[[int], None] = lambda shard: None,
    ) -> None:
        if len(shard_numbers) < world_size:
            raise ValueError(
                f"{len(shard_numbers)} training images for {world_size} processes: expected at least one for each"
            )
        self.shard_numbers, self.batch_size, self.seed = shard_numbers, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle_shards, self.prefetch = shuffle_shards, prefetch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        largest, smallest = (
            math.ceil(len(self.shard_numbers) / self.world_size),
            len(self.shard_numbers) // self.world_size,
        )
        return min(math.ceil(largest / self.batch_size), smallest)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        position = rng.permutation(int(self.shard_numbers.max()) + 1)  # of each shard in the order of this epoch
        times = position[self.shard_numbers] + self.shuffle_shards * rng.random(len(self.shard_numbers))
        order = np.argsort(times, kind="stable")
        seeds = rng.integers(2**62, size=len(order))
        start, end = (len(order) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        indices = order[start:end]
        announce = _prefetch_announcer(self.shard_numbers[indices], len(order) // len(position) + 1, self.prefetch)
        done = 0
        for batch in np.array_split(indices, len(self)):
            announce(done)
            done += len(batch)
            yield list(zip(batch.tolist(), seeds[batch].tolist(), strict=True))


class PrefetchingSampler(Sampler[Any]):
    """Yields `keys` in their order; announces each shard about as many images ahead as a shard has.

    Args:
        keys: An index, or `(index, seed)`, for each item. A negative index needs the shard of index 0.
        shard_numbers: Shard number of each image, (N,).
        prefetch: Called with each shard number some time before the shard is needed.
    """

    def __init__(self, keys: SampleKeys, shard_numbers: NDArray[np.int64], prefetch: Callable[[int], None]) -> None:
        self.keys, self.shard_numbers, self.prefetch = keys, shard_numbers, prefetch

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Any]:
        indices = [key[0] if isinstance(key, tuple) else key for key in self.keys]
        needed = self.shard_numbers[np.maximum(indices, 0)]
        announce = _prefetch_announcer(needed, len(needed) // max(len(np.unique(needed)), 1) + 1, self.prefetch)
        for position, key in enumerate(self.keys):
            announce(position)
            yield key


def _prefetch_announcer(needed: NDArray[np.int64], lead: int, prefetch: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that, called with a position, prefetches the shards needed up to `lead` items later."""
    shards, first = np.unique(needed, return_index=True)
    upcoming = sorted(zip(first.tolist(), shards.tolist(), strict=True), reverse=True)

    def announce(position: int) -> None:
        while upcoming and upcoming[-1][0] <= position + lead:
            prefetch(upcoming.pop()[1])

    return announce


class ResumableDataLoader(DataLoader[Any]):
    """A DataLoader that starts an epoch at the first request for a batch, after the batches already done.

    Lightning creates the iterator before it restores a checkpoint. The workers of a plain DataLoader would then already
    load the first epoch, whatever epoch is resumed.

    The workers begin the next epoch when the last batch is taken, while the model still trains on it and validates.

    Args:
        dataset: The images.
        batches: Batch sampler; its `sampler`, or else itself, has `epoch` and `set_epoch`.
        batches_done: Returns the number of batches of this epoch that are already done.
        has_next_epoch: Returns whether another epoch follows this one.
        settings: Further arguments of the DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: BatchSampler | Sampler[Any],
        batches_done: Callable[[], int],
        has_next_epoch: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> None:
        self._remaining = _RemainingBatches(batches)
        super().__init__(dataset, batch_sampler=self._remaining, **settings)
        self._batches_done, self._has_next_epoch = batches_done, has_next_epoch
        self._next_epoch: tuple[int, Iterator[Any]] | None = None  # whose batches the workers already load

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: it runs at the first request
        sampler, done = self._remaining.sampler, self._batches_done()
        started, self._next_epoch = self._next_epoch, None
        iterator = started[1] if started and started[0] == sampler.epoch and not done else self._start(done)
        try:
            for number, batch in enumerate(iterator, done + 1):
                is_last = number == len(self)
                if is_last and self.num_workers and self._has_next_epoch():
                    sampler.set_epoch(sampler.epoch + 1)
                    self._next_epoch = sampler.epoch, self._start(0)  # the same iterator if workers persist
                yield batch
                if is_last:
                    return
        except Exception:
            # The error refers to the iterator. As garbage of a cycle it could no longer tell its workers to stop, and
            # would wait ten seconds for them.
            if self.num_workers:
                self._iterator = None
                iterator._shutdown_workers()  # type: ignore[attr-defined]
            raise

    def _start(self, done: int) -> Iterator[Any]:
        self._remaining.done = done
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing. The method tells Lightning that the loader can resume inside an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: `batches_done` knows the position."""


class _RemainingBatches(Sampler[Any]):
    """The batches of an epoch after the first `done` ones. The length is that of the whole epoch."""

    def __init__(self, batches: BatchSampler | Sampler[Any]) -> None:
        self.batches, self.done = batches, 0
        self.sampler: Any = getattr(batches, "sampler", batches)  # Lightning looks here for `set_epoch`

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.done, None)
