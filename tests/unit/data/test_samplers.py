import itertools

import numpy as np
import pytest

from flowers.data.samplers import PrefetchingSampler, ShardShuffleBatchSampler

SHARDS = np.repeat(np.arange(40), 50)  # 2,000 photos


def epoch(order: ShardShuffleBatchSampler, number: int = 0) -> list[list[tuple[int, int]]]:
    order.set_epoch(number)
    return list(order)


def indices(order: ShardShuffleBatchSampler, number: int = 0) -> list[int]:
    return [index for batch in epoch(order, number) for index, _ in batch]


def test_an_epoch_has_each_photo_once_is_the_same_again_and_unlike_the_next():
    first = indices(ShardShuffleBatchSampler(SHARDS, 32, seed=0))
    assert sorted(first) == list(range(2000))
    assert epoch(ShardShuffleBatchSampler(SHARDS, 32, seed=0)) == epoch(ShardShuffleBatchSampler(SHARDS, 32, seed=0))
    assert first != indices(ShardShuffleBatchSampler(SHARDS, 32, seed=0), 1)
    assert first != indices(ShardShuffleBatchSampler(SHARDS, 32, seed=1))
    seeds = [
        {seed for batch in epoch(ShardShuffleBatchSampler(SHARDS, 32, seed=0), e) for _, seed in batch}
        for e in range(2)
    ]
    assert len(seeds[0]) == 2000
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize(
    ("photos", "ranks", "batch_size"), [(2000, 3, 32), (7, 3, 1), (8, 3, 3), (65, 4, 16), (5, 5, 2)]
)
def test_processes_take_each_photo_once_in_as_many_batches(photos: int, ranks: int, batch_size: int):
    shares = [epoch(ShardShuffleBatchSampler(SHARDS[:photos], batch_size, 0, rank, ranks)) for rank in range(ranks)]
    taken = [index for share in shares for batch in share for index, _ in batch]
    assert sorted(taken) == list(range(photos))
    assert {len(share) for share in shares} == {len(ShardShuffleBatchSampler(SHARDS[:photos], batch_size, 0, 0, ranks))}
    sizes = [len(batch) for share in shares for batch in share]
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size, 2)


def test_the_order_is_nearly_as_good_as_a_full_shuffle():
    order = ShardShuffleBatchSampler(SHARDS, 32, seed=0, mixed=8)
    epochs = np.array([np.argsort(indices(order, number)) for number in range(20)]) / 2000  # when each photo came
    assert epochs.mean(0).std() == pytest.approx((1 / 12 / 20) ** 0.5, rel=0.1)  # none is always early or late
    neighbours = [set(itertools.pairwise(indices(order, number))) for number in range(2)]
    assert len(neighbours[0] & neighbours[1]) <= 5  # none keeps the photo behind it
    of = SHARDS[indices(order)]
    batches = [set(of[start : start + 32].tolist()) for start in range(400, 1600, 32)]
    assert min(map(len, batches)) >= 6  # of the 8 that are open: a batch is no stretch of one folder


def test_few_shards_are_open_at_once_and_each_is_asked_for_before_it_is_needed():
    told: list[int] = []
    order = ShardShuffleBatchSampler(SHARDS, 10, seed=0, mixed=4, prefetch=told.append)
    needed: dict[int, list[int]] = {}
    for place, batch in enumerate(order):
        for index, _ in batch:
            shard = int(SHARDS[index])
            assert shard in told
            needed.setdefault(shard, []).append(place)
    assert told == list(dict.fromkeys(told))
    spans = [max(places) - min(places) for places in needed.values()]
    assert max(spans) <= 4 * 5 + 1  # batches: four shards of fifty photos, ten a batch


@pytest.mark.parametrize("rank", [0, 1])
def test_photos_in_turn_are_left_so_and_the_next_shard_is_asked_for_while_one_is_read(rank: int):
    told: list[int] = []
    keys = [*range(rank, 2000, 2), -1]
    for place, key in enumerate(PrefetchingSampler(keys, SHARDS, told.append)):
        assert key == keys[place]
        shard = int(SHARDS[max(key, 0)])
        assert shard in told
        assert len(told) <= shard + 3 or key == -1
    assert told == list(range(40))
    assert list(PrefetchingSampler([(7, 3), (5, 1)], SHARDS, told.append)) == [(7, 3), (5, 1)]


def test_fewer_photos_than_processes_are_refused():
    with pytest.raises(ValueError, match="wanted at least one for each of 3"):
        ShardShuffleBatchSampler(SHARDS[:2], 4, 0, 0, 3)
