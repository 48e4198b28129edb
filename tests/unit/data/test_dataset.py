import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from flowers.data.datamodule import ImageDataModule
from flowers.data.dataset import DecodedImageCache, ImageDataset
from flowers.data.images import ImageFileError


def make_data(folder: Path, seed: int, workers: int = 0, share: float = 0.01) -> ImageDataModule:
    """Return data whose split, and so whose cache of decoded images, no other test uses."""
    return ImageDataModule.from_settings(
        folder,
        split_seed=seed,
        image_size=32,
        resize=32,
        batch_size=4,
        num_workers=workers,
        decoded_cache_fraction=share,
    )


def train_epochs(data: ImageDataModule, count: int) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        epochs.append(torch.cat([images for images, _ in loader]))
    return epochs


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_are_those_read_from_disk(folder: Path, workers: int):
    uncached = train_epochs(make_data(folder, 100 + workers, share=0), 3)
    cached = train_epochs(make_data(folder, 100 + workers, workers), 3)
    assert all(torch.equal(*epochs) for epochs in zip(cached, uncached, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_read_once_by_any_worker_and_not_by_the_next_job(folder: Path, workers: int):
    data = make_data(folder, 200 + workers, workers)
    (first,) = train_epochs(data, 1)
    for path in folder.rglob("*.png"):
        path.unlink()
    assert torch.equal(train_epochs(data, 2)[0], first)  # new workers and a new dataset


def test_images_that_do_not_fit_into_the_cache_are_read_from_disk(folder: Path):
    data = make_data(folder, 300, share=0)
    uncached = data.dataset("train", augmented=True)
    images = [uncached[index][0] for index in range(len(uncached))]
    cache = DecodedImageCache(20, 3 * 96 * 80 * 2)  # two images of the original size
    dataset = ImageDataset(
        uncached.root,
        uncached.paths,
        uncached.labels,
        uncached.digests,
        data.resize_if_larger,
        data.train_transform,
        cache,
    )
    for _ in range(2):
        assert all(torch.equal(dataset[index][0], image) for index, image in enumerate(images))
    assert 2 <= sum(cache.get(index) is not None for index in range(len(dataset))) < 10


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["changed", "cut", "deleted", "fifo"])
def test_dataset_names_an_image_that_changes_during_training_in_one_line(folder: Path, workers: int, kind: str):
    data = make_data(folder, 400, workers, share=0)
    path = folder / next(record.path for record in data.records if record.split == "train")
    content = path.read_bytes()
    path.unlink()
    if kind in ("changed", "cut"):
        path.write_bytes(next(folder.glob("orchid/*")).read_bytes() if kind == "changed" else content[:-20])
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(
        ImageFileError, match=rf"^{path} (has changed|cannot be opened|not a regular file).*restore it.*$"
    ):
        train_epochs(data, 1)


def test_dataset_names_an_image_that_cannot_be_decoded(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"text")  # as in shards of others, which are not checked first
    digest = hashlib.sha256(b"text").hexdigest()
    with pytest.raises(ImageFileError, match=r"^a\.jpg: not a JPEG"):
        ImageDataset(tmp_path, ["a.jpg"], [0], [digest], lambda image: image)[0]


def test_cache_does_not_wait_for_a_lost_lock_again():
    cache, image = DecodedImageCache(3, 1000), torch.zeros(3, 4, 4, dtype=torch.uint8)
    cache.put(0, image)
    waits = []

    class Lost:
        def acquire(self, timeout: float) -> bool:
            waits.append(timeout)
            return False

    cache._lock = Lost()  # type: ignore[assignment]
    for index in (1, 2):
        cache.put(index, image)
    assert len(waits) == 1
    assert [cache.get(index) is not None for index in range(3)] == [True, False, False]


@pytest.mark.parametrize("packed", [False, True])
def test_dataset_for_a_spawned_worker_is_small_and_has_each_path_once(
    packed: bool, folder: Path, shards: Path, request: pytest.FixtureRequest
):
    data = ImageDataModule.from_settings(shards, packed=True) if packed else make_data(folder, 500)
    dataset = data.dataset("train", augmented=True)
    image = dataset[0, 1][0]
    content = pickle.dumps(dataset)
    assert content.count(dataset.paths[0].encode()) == 1
    assert content.count(dataset.digests[0].encode()) == 1
    per_image = 300 if packed else 150  # a digest has 64, and in shards a line of split.csv 100
    assert len(content) < 6000 + per_image * len(data.records)
    assert torch.equal(pickle.loads(content)[0, 1][0], image)
