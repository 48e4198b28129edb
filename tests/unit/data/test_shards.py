import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import ImageFileError
from flowers.data.remote import RemoteFile, RemoteFileError
from flowers.data.sources.shards import ShardSource
from flowers.runtime.seeding import PADDING_INDEX
from tests.helpers import packed

SMALL: dict[str, Any] = {"image_size": 32, "resize": 32, "batch_size": 16, "num_workers": 0}


def remote_data(root: str, **settings: Any) -> ImageDataModule:
    return ImageDataModule.from_settings(root, packed=True, retry_timeout=5, **SMALL, **settings)


def test_images_from_s3_and_the_web_are_those_of_the_folder(painted: Path, s3: str, web: str):
    folder = ImageDataModule.from_settings(painted, test_fraction=0.1, **SMALL)
    for data in (remote_data("s3://garden/packed", s3_endpoint=s3), remote_data(web)):
        assert data.split_digest == folder.split_digest
        for batches in zip(data.val_dataloader(), folder.val_dataloader(), strict=True):
            assert all(torch.equal(*tensors) for tensors in zip(*batches, strict=True))


def test_train_epoch_from_s3_with_workers_is_that_of_local_shards(shards: Path, s3: str):
    remote = remote_data("s3://garden/packed", s3_endpoint=s3)
    remote.num_workers = 2
    local = ImageDataModule.from_settings(shards, packed=True, **SMALL)
    for batches in zip(remote.train_dataloader(), local.train_dataloader(), strict=True):
        assert all(torch.equal(*tensors) for tensors in zip(*batches, strict=True))


def test_an_image_in_a_shard_has_at_most_the_pixels_of_the_setting(shards: Path):
    data = ImageDataModule.from_settings(shards, packed=True, max_megapixels=1e-4, **SMALL)
    with pytest.raises(ImageFileError, match="over the limit of 100: make it smaller, or set a larger max_megapixels"):
        data.dataset("val")[0]


def test_each_of_two_processes_reads_its_half_of_the_val_shards(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packed(painted, tmp_path / "packed", "shard_mb=0.01")
    prefetched, count = list[set[int]](), 0
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        data, shards = ImageDataModule.from_settings(tmp_path / "packed", packed=True, **SMALL), set[int]()
        assert isinstance(data.source, ShardSource)
        monkeypatch.setattr(data.source, "prefetch", shards.add)
        count += sum(int((labels != PADDING_INDEX).sum()) for _, labels in data.val_dataloader())
        prefetched.append(shards)
    assert count == len(data.dataset("val"))
    assert len(prefetched[0] & prefetched[1]) <= 1 < min(map(len, prefetched))


def test_records_name_the_shards_that_cannot_be_downloaded(web: str):
    with pytest.raises(ValueError, match=r"^cannot download .*/none/shards.json .*404"):
        _ = remote_data(f"{web}/none").records


def test_records_of_a_folder_without_shards_say_how_to_write_them(painted: Path):
    with pytest.raises(ValueError, match=r"no shards at .*: python -m flowers.pack writes them"):
        _ = ImageDataModule.from_settings(painted, packed=True).records


def test_train_dataloader_refuses_a_cache_that_is_too_small(web: str):
    with pytest.raises(ValueError, match=r"data\.cache_gb=.*expected at least"):
        remote_data(web, cache_gb=1e-5).train_dataloader()


def test_shards_have_one_split_each_and_train_shards_a_fair_sample(shards: Path):
    source = ShardSource(str(shards), None, 0, 0)
    numbers = source.shard_numbers([record.path for record in source.records]).tolist()
    for record, number in zip(source.records, numbers, strict=True):
        assert source.shards[number].name.startswith(record.split)
    first = [record for record, number in zip(source.records, numbers, strict=True) if number == 0]
    assert len({record.label for record in first}) > 2  # of 5, in a shard of about 15 images
    val = [record for record in source.records if record.split == "val"]
    assert source.sort(val) == val


def change_manifest(folder: Path, key: str, value: Any) -> None:
    path = folder / "shards.json"
    manifest = json.loads(path.read_text("utf-8"))
    change = value(manifest[key]) if callable(value) else value
    path.write_text(json.dumps(manifest | {key: change}), "utf-8")


def replace(position: int, value: object) -> Callable[[list[Any]], list[Any]]:
    """Return a function that changes one item of a list; of a list of lists, an item of the first one."""

    def change(items: list[Any]) -> list[Any]:
        if isinstance(items[0], list):
            return [change(items[0]), *items[1:]]
        return [*items[:position], value, *items[position + 1 :]]

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 2: expected 1"),
        ("photos", -1, "photos is -1"),
        ("photos", 1.5, r"photos is 1\.5"),
        ("photos", True, "photos is True"),
        ("classes", "rose", "classes is not a list of names"),
        ("classes", [1], "classes is not a list of names"),
        ("classes", ["rose", "rose"], "classes is not a list of names"),
        ("_target_", "os.system", "_target_: no such key"),
        ("shards", [], "shards is not a list"),
        ("shards", {}, "shards is not a list"),
        ("shards", [[]], "is not a file"),
        ("shards", [None], "is not a file"),
        ("shards", lambda shards: [shards[0]] * 2, "a file occurs twice"),
        ("split", None, "is not a file"),
        ("split", replace(0, "../split.csv"), "is not a file"),
        ("split", replace(0, "/etc/passwd"), "is not a file"),
        ("split", replace(0, ".."), "is not a file"),
        ("split", replace(0, "a\\b"), "is not a file"),
        ("split", replace(0, "split.csv?x=1"), "is not a file"),
        ("places", replace(1, -1), "is not a file"),
        ("places", replace(1, 10**30), "is not a file"),
        ("places", replace(1, "10"), "is not a file"),
        ("shards", replace(2, "../../../etc/passwd"), "is not a file"),
        ("shards", replace(2, "A" * 64), "is not a file"),
        ("shards", replace(2, "a" * 63), "is not a file"),
    ],
)
def test_manifest_with_a_wrong_value_is_refused_before_anything_else_is_read(
    hostile_shards: Path, key: str, value: Any, message: str
):
    change_manifest(hostile_shards, key, value)
    (hostile_shards / "split.csv").unlink()
    with pytest.raises(ValueError, match=f"^{hostile_shards}/shards.json describes no shards: .*{message}"):
        _ = ImageDataModule.from_settings(hostile_shards, packed=True).records


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"1", b"\xff", b"[" * 10**5, b'{"format": 1}', b"1" * 5000])
def test_records_name_the_address_of_a_garbage_manifest_in_one_line(
    hostile_shards: Path, hostile_web: str, content: bytes
):
    (hostile_shards / "shards.json").write_bytes(content)
    for root in (str(hostile_shards), hostile_web):
        with pytest.raises(ValueError, match=rf"^{root}/shards.json describes no shards: [^\n]+$"):
            _ = remote_data(root).records


def test_manifest_of_too_many_bytes_is_not_read(
    hostile_shards: Path, hostile_web: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flowers.data.sources.shards.MAX_MANIFEST_BYTES", 100)
    for root in (str(hostile_shards), hostile_web):
        with pytest.raises(ValueError, match=r"shards.json .* (at most|more than) 100"):
            _ = remote_data(root).records


def rewrite(folder: Path, key: str, content: bytes) -> None:
    """Replace a file of the shards, with its digest in shards.json."""
    manifest = json.loads((folder / "shards.json").read_text("utf-8"))
    (folder / manifest[key][0]).write_bytes(content)
    change_manifest(folder, key, [manifest[key][0], len(content), hashlib.sha256(content).hexdigest()])


def npy(array: Any, **options: bool) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def hostile_indices() -> dict[str, bytes]:
    index = np.tile(np.array([[0, 512, 100]]), (60, 1))
    row = np.array([1, 1, 1])
    long = npy(index).replace(b"(60, 3), }" + b" " * 9, b"(60000000000, 3), }")
    assert len(long) == len(npy(index))
    return {
        "pickle": npy(np.array([[Path("x")] * 3] * 60, dtype=object), allow_pickle=True),
        "garbage": b"garbage",
        "header": npy(index).replace(b"(60, 3)", b"(600000"),
        "long": long,
        "float": npy(index.astype(float)),
        "short": npy(index[:-1]),
        "columns": npy(index[:, :2]),
        "negative": npy(index - [0, 1000, 0]),
        "shard": npy(index + 99 * row * [1, 0, 0]),
        "negative shard": npy(index - [1, 0, 0]),
        "behind": npy(index + 2**62 * row * [0, 1, 0]),
        "large": npy(index + 2**40 * row * [0, 0, 1]),
    }


@pytest.mark.parametrize("name", hostile_indices())
def test_index_out_of_range_is_refused_without_a_large_allocation(hostile_shards: Path, name: str):
    rewrite(hostile_shards, "places", hostile_indices()[name])
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^{hostile_shards}/places.npy is no index of 60 images"):
        ImageDataModule.from_settings(hostile_shards, packed=True).dataset("train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.rindex("daisy")], "expected one complete line"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "has other images or classes"),
        (lambda text: text.replace(",daisy,", ",rosebud,"), "has other images or classes"),
    ],
)
def test_split_of_shards_must_fit_the_manifest(hostile_shards: Path, change: Callable[[str], str], message: str):
    rewrite(hostile_shards, "split", change((hostile_shards / "split.csv").read_text("utf-8")).encode())
    with pytest.raises(ValueError, match=message):
        _ = ImageDataModule.from_settings(hostile_shards, packed=True).records


@pytest.mark.parametrize("name", ["split.csv", "places.npy"])
def test_files_of_a_folder_of_shards_are_those_of_its_manifest(hostile_shards: Path, name: str):
    (hostile_shards / name).write_bytes((hostile_shards / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"{name} is not the file of shards.json: copy the shards again"):
        ImageDataModule.from_settings(hostile_shards, packed=True).dataset("train")


def test_two_images_with_places_swapped_are_refused(hostile_shards: Path):
    index = np.load(hostile_shards / "places.npy")
    records = ImageDataModule.from_settings(hostile_shards, packed=True).records
    first, second = [line for line, record in enumerate(records) if record.split == "train"][:2]
    index[[first, second]] = index[[second, first]]
    rewrite(hostile_shards, "places", npy(index))
    data = ImageDataModule.from_settings(hostile_shards, packed=True, **SMALL | {"num_workers": 1})
    with pytest.raises(ImageFileError, match=r"^[a-z]+/\d+.jpg in .*/train-000000.tar is not the image of split.csv"):
        list(data.train_dataloader())


def test_shard_that_is_missing_cut_or_a_fifo_is_named(hostile_shards: Path):
    source = ShardSource(str(hostile_shards), None, 0, 0)
    image = source / next(record.path for record in source.records if record.split == "val")
    shard = hostile_shards / "val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ImageFileError, match=r"val-000000.tar is not the image of split.csv"):
        image.content()
    shard.unlink()
    for _ in range(2):
        with pytest.raises(ImageFileError, match=r"val-000000.tar is missing, or not a regular file"):
            image.content()
        if not shard.exists():
            os.mkfifo(shard)


def test_shard_that_is_dropped_again_and_again_is_not_fetched_for_ever(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = remote_data(web)
    assert isinstance(data.source, ShardSource)
    dataset, fetched = data.dataset("val"), []

    def dropped(file: RemoteFile) -> Path:
        fetched.append(file.name)
        return tmp_path / "dropped"

    monkeypatch.setattr(data.source.cache, "path", dropped)
    with pytest.raises(RemoteFileError, match=r"removed the copy of .*val-000000.tar 5 times.*larger data.cache_gb"):
        dataset[0]
    assert len(fetched) == 5


@pytest.mark.parametrize("pass_over", ["val_dataloader", "features"])
def test_passes_without_shuffling_refuse_a_cache_that_is_too_small(web: str, pass_over: str):
    data = remote_data(web, cache_gb=0.12e-3)  # two of the shards
    with pytest.raises(ValueError, match=r"data.cache_gb=.*expected at least .* for the 3 shards in use at a time$"):
        data.val_dataloader() if pass_over == "val_dataloader" else data.batches(data.dataset("train"))
