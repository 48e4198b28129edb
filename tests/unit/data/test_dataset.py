from pathlib import Path

import pytest
import torch

from flowers.data.datamodule import ImageDataModule
from flowers.data.dataset import DecodedImageCache, ImageDataset


def make_data(folder: Path, seed: int, workers: int = 0, share: float = 0.01) -> ImageDataModule:
    """Return data whose split, and so whose cache of decoded images, no other test uses."""
    return ImageDataModule(
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
