import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from flowers.data.samplers import (
    EpochSampler,
    PrefetchingSampler,
    ResumableDataLoader,
    ShardShuffleBatchSampler,
    balanced_order,
)
from flowers.runtime.seeding import PADDING_INDEX

SHARDS = np.repeat(np.arange(40), 50)  # of 2,000 images


def batches(sampler: ShardShuffleBatchSampler, epoch: int = 0) -> list[list[tuple[int, int]]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def indices(sampler: ShardShuffleBatchSampler, epoch: int = 0) -> list[int]:
    return [index for batch in batches(sampler, epoch) for index, _ in batch]


def test_epoch_sampler_gives_each_item_to_one_process_and_pads_the_last_round():
    items = dict(EpochSampler(7, seed=0))
    shares = [list(EpochSampler(7, seed=0, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    taken = sorted(key for share in shares for key in share)
    assert taken == [(PADDING_INDEX, 0)] * 2 + sorted(items.items())


RARE = [0] * 40 + [1] * 15 + [2] * 2  # 57 labels: 19 of each in a balanced epoch


def balanced_epoch(epoch: int, **share: int) -> list[tuple[int, int]]:
    sampler = EpochSampler(len(RARE), seed=0, balanced_labels=RARE, **share)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_balanced_epochs_have_each_label_and_each_item_of_a_label_equally_often():
    times = np.zeros(len(RARE))
    for epoch in range(40):
        counts = np.bincount([index for index, _ in balanced_epoch(epoch)], minlength=len(RARE))
        assert [counts[np.array(RARE) == label].sum() for label in range(3)] == [19] * 3
        assert all(np.ptp(counts[np.array(RARE) == label]) <= 1 for label in range(3))
        times += counts
    assert times[:40].min() > 0  # no item is left out for good


@pytest.mark.parametrize("length", [3, 5, 7])
def test_balanced_order_of_any_length_differs_by_one_item_at_most(length: int):
    labels = torch.arange(length).clamp(max=2)
    for seed in range(5):
        drawn = labels[balanced_order(labels, torch.Generator().manual_seed(seed))]
        counts = drawn.bincount(minlength=3)
        assert len(drawn) == length
        assert counts.max() - counts.min() <= 1


def test_balanced_epochs_are_a_function_of_seed_and_epoch_and_their_shares_make_up_the_whole():
    whole = balanced_epoch(3)
    assert whole == balanced_epoch(3)
    assert whole != balanced_epoch(4)
    assert len({seed for _, seed in whole}) == len(RARE)  # the copies of an image are augmented differently
    shares = [balanced_epoch(3, rank=rank, world_size=4) for rank in range(4)]
    assert [len(share) for share in shares] == [15] * 4
    assert sorted(key for share in shares for key in share) == sorted([*whole, *[(PADDING_INDEX, 0)] * 3])


def test_shard_shuffle_yields_each_image_once_in_an_order_of_seed_and_epoch():
    first = indices(ShardShuffleBatchSampler(SHARDS, 32, seed=0))
    assert sorted(first) == list(range(2000))
    assert batches(ShardShuffleBatchSampler(SHARDS, 32, seed=0)) == batches(
        ShardShuffleBatchSampler(SHARDS, 32, seed=0)
    )
    assert first != indices(ShardShuffleBatchSampler(SHARDS, 32, seed=0), 1)
    assert first != indices(ShardShuffleBatchSampler(SHARDS, 32, seed=1))
    seeds = [
        {seed for batch in batches(ShardShuffleBatchSampler(SHARDS, 32, seed=0), epoch) for _, seed in batch}
        for epoch in range(2)
    ]
    assert len(seeds[0]) == 2000
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize(
    ("count", "world_size", "batch_size"), [(2000, 3, 32), (7, 3, 1), (8, 3, 3), (65, 4, 16), (5, 5, 2)]
)
def test_shard_shuffle_gives_each_image_to_one_process_and_all_the_same_number_of_batches(
    count: int, world_size: int, batch_size: int
):
    shares = [
        batches(ShardShuffleBatchSampler(SHARDS[:count], batch_size, 0, rank, world_size)) for rank in range(world_size)
    ]
    taken = [index for share in shares for batch in share for index, _ in batch]
    assert sorted(taken) == list(range(count))
    assert {len(share) for share in shares} == {
        len(ShardShuffleBatchSampler(SHARDS[:count], batch_size, 0, 0, world_size))
    }
    sizes = [len(batch) for share in shares for batch in share]
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size, 2)


def test_shard_shuffle_is_nearly_as_good_as_a_full_shuffle():
    sampler = ShardShuffleBatchSampler(SHARDS, 32, seed=0, shuffle_shards=8)
    epochs = np.array([np.argsort(indices(sampler, number)) for number in range(20)]) / 2000  # the time of each image
    assert epochs.mean(0).std() == pytest.approx((1 / 12 / 20) ** 0.5, rel=0.1)  # no image is always early or late
    neighbors = [set(itertools.pairwise(indices(sampler, number))) for number in range(2)]
    assert len(neighbors[0] & neighbors[1]) <= 5  # no image keeps its successor
    shards = SHARDS[indices(sampler)]
    of_batches = [set(shards[start : start + 32].tolist()) for start in range(400, 1600, 32)]
    assert min(map(len, of_batches)) >= 6  # of the 8 open shards


def test_shard_shuffle_opens_few_shards_at_once_and_prefetches_each():
    announced: list[int] = []
    sampler = ShardShuffleBatchSampler(SHARDS, 10, seed=0, shuffle_shards=4, prefetch=announced.append)
    needed: dict[int, list[int]] = {}
    for position, batch in enumerate(sampler):
        for index, _ in batch:
            shard = int(SHARDS[index])
            assert shard in announced
            needed.setdefault(shard, []).append(position)
    assert announced == list(dict.fromkeys(announced))
    spans = [max(positions) - min(positions) for positions in needed.values()]
    assert max(spans) <= 4 * 5 + 1  # batches: four shards of 50 images, ten images per batch


@pytest.mark.parametrize("rank", [0, 1])
def test_prefetching_sampler_keeps_the_order_and_prefetches_the_next_shard(rank: int):
    announced: list[int] = []
    keys = [*range(rank, 2000, 2), -1]
    for position, key in enumerate(PrefetchingSampler(keys, SHARDS, announced.append)):
        assert key == keys[position]
        shard = int(SHARDS[max(key, 0)])
        assert shard in announced
        assert len(announced) <= shard + 3 or key == -1
    assert announced == list(range(40))
    assert list(PrefetchingSampler([(7, 3), (5, 1)], SHARDS, announced.append)) == [(7, 3), (5, 1)]


def test_shard_shuffle_refuses_fewer_images_than_processes():
    with pytest.raises(ValueError, match="2 training images for 3 processes"):
        ShardShuffleBatchSampler(SHARDS[:2], 4, 0, 0, 3)


class Numbers(Dataset[Tensor]):
    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor([float(key[0])])


class Reader(LightningModule):
    """Records epochs and batches, and saves a checkpoint after one batch."""

    def __init__(self, save: tuple[int, int] | None = None, path: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[float]]] = []
        self.save, self.path = save, path

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.flatten().tolist()))
        return self.weight * batch.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == self.save:
            self.trainer.save_checkpoint(self.path)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches  # requests the dataloader, as `Network` does
        return torch.optim.SGD(self.parameters(), lr=0.1)


def read_epochs(
    workers: int, checkpoint: Path | None = None, labels: list[int] | None = None, **save: Any
) -> list[tuple[int, list[float]]]:
    trainer = Trainer(accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    loader = ResumableDataLoader(
        Numbers(),
        BatchSampler(EpochSampler(8, seed=0, balanced_labels=labels), 2, drop_last=False),  # type: ignore[arg-type]
        lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        lambda: trainer.current_epoch + 1 < 3,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    reader = Reader(**save)
    trainer.fit(reader, loader, ckpt_path=checkpoint, weights_only=True)
    return reader.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_resumable_data_loader_continues_after_the_last_batch_for_any_number_of_workers(tmp_path: Path, workers: int):
    whole = read_epochs(workers, save=(1, 1), path=tmp_path / "inside.ckpt")
    epochs = [[number for of, batch in whole if of == epoch for number in batch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert read_epochs(workers, tmp_path / "inside.ckpt") == whole[6:]


def test_resumable_data_loader_resumed_between_epochs_has_the_order_of_the_next(tmp_path: Path):
    whole = read_epochs(2, save=(0, 3), path=tmp_path / "end.ckpt")
    assert read_epochs(2, tmp_path / "end.ckpt") == whole[4:]


@pytest.mark.parametrize("persistent", [True, False])
def test_resumable_data_loader_loads_the_next_epoch_when_it_gives_the_last_batch(persistent: bool):
    def order(epoch: int) -> list[int]:
        sampler.set_epoch(epoch)
        return [index for index, _ in sampler]

    sampler = EpochSampler(8, seed=0)
    expected = [order(epoch) for epoch in range(4)]
    sampler.set_epoch(0)
    batches = BatchSampler(sampler, 2, drop_last=False)  # type: ignore[arg-type]
    loader = ResumableDataLoader(
        Numbers(), batches, lambda: 0, lambda: True, num_workers=1, persistent_workers=persistent
    )
    for epoch in (0, 1, 3):  # 2 is loaded, but not asked for
        sampler.set_epoch(epoch)
        taken = []
        for batch in loader:
            taken += batch.flatten().tolist()
            assert sampler.epoch == epoch + (len(taken) == 8)
        assert taken == expected[epoch]


def test_resumable_data_loader_continues_a_balanced_epoch(tmp_path: Path):
    labels = [0, 0, 0, 0, 0, 0, 1, 1]
    whole = read_epochs(2, labels=labels, save=(1, 1), path=tmp_path / "inside.ckpt")
    assert [sum(number >= 6 for _, batch in whole[start : start + 4] for number in batch) for start in (0, 4, 8)] == [
        4
    ] * 3
    assert read_epochs(0, tmp_path / "inside.ckpt", labels) == whole[6:]
