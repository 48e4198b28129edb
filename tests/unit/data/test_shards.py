from pathlib import Path
from typing import Any

import pytest
import torch

from flowers.data.datamodule import ImageDataModule
from flowers.data.shards import ShardSource
from flowers.runtime.seeding import PADDING_INDEX
from tests.helpers import packed

SMALL: dict[str, Any] = {"image_size": 32, "resize": 32, "batch_size": 16, "num_workers": 0}


def remote_data(root: str, **settings: Any) -> ImageDataModule:
    return ImageDataModule(root, packed=True, retry_timeout=5, **SMALL, **settings)


def test_images_from_s3_and_the_web_are_those_of_the_folder(painted: Path, s3: str, web: str):
    folder = ImageDataModule(painted, test_fraction=0.1, **SMALL)
    for data in (remote_data("s3://garden/packed", s3_endpoint=s3), remote_data(web)):
        assert data.split_digest == folder.split_digest
        for batches in zip(data.val_dataloader(), folder.val_dataloader(), strict=True):
            assert all(torch.equal(*tensors) for tensors in zip(*batches, strict=True))


def test_train_epoch_from_s3_with_workers_is_that_of_local_shards(shards: Path, s3: str):
    remote = remote_data("s3://garden/packed", s3_endpoint=s3)
    remote.num_workers = 2
    local = ImageDataModule(shards, packed=True, **SMALL)
    for batches in zip(remote.train_dataloader(), local.train_dataloader(), strict=True):
        assert all(torch.equal(*tensors) for tensors in zip(*batches, strict=True))


def test_each_of_two_processes_reads_its_half_of_the_val_shards(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packed(painted, tmp_path / "packed", "shard_mb=0.01")
    prefetched, count = list[set[int]](), 0
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        data, shards = ImageDataModule(tmp_path / "packed", packed=True, **SMALL), set[int]()
        assert data.shards is not None
        monkeypatch.setattr(data.shards, "prefetch", shards.add)
        count += sum(int((labels != PADDING_INDEX).sum()) for _, labels in data.val_dataloader())
        prefetched.append(shards)
    assert count == len(data.dataset("val"))
    assert len(prefetched[0] & prefetched[1]) <= 1 < min(map(len, prefetched))


def test_records_name_the_shards_that_cannot_be_downloaded(web: str):
    with pytest.raises(ValueError, match=r"^cannot download .*/none/shards.json .*404"):
        _ = remote_data(f"{web}/none").records


def test_records_of_a_folder_without_shards_say_how_to_write_them(painted: Path):
    with pytest.raises(ValueError, match=r"no shards at .*: python -m flowers.pack writes them"):
        _ = ImageDataModule(painted, packed=True).records


def test_train_dataloader_refuses_a_cache_that_is_too_small(web: str):
    with pytest.raises(ValueError, match=r"data.cache_gb=.*expected at least"):
        remote_data(web, cache_gb=1e-6).train_dataloader()


def test_shards_have_one_split_each_and_train_shards_a_fair_sample(shards: Path):
    source = ShardSource(str(shards), None, 0, 0)
    numbers = source.shard_numbers([record.path for record in source.records]).tolist()
    for record, number in zip(source.records, numbers, strict=True):
        assert source.shards[number].name.startswith(record.split)
    first = [record for record, number in zip(source.records, numbers, strict=True) if number == 0]
    assert len({record.label for record in first}) > 2  # of 5, in a shard of about 15 images
    val = [record for record in source.records if record.split == "val"]
    assert source.sort_by_shard(val) == val
