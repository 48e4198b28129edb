from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from flowers.data.datamodule import ImageDataModule
from flowers.data.dataset import DecodedImageCache, ImageDataset
from flowers.data.transforms import FusedColorJitter, ResizeIfLarger, max_useful_side, train_transform


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowers.data.dataset._CACHES", {})


def photos_of(folder: Path, workers: int = 0, share: float = 0.01) -> ImageDataModule:
    return ImageDataModule(
        folder, image_size=32, resize=32, batch_size=4, num_workers=workers, decoded_cache_fraction=share
    )


def epochs(data: ImageDataModule, count: int) -> list[torch.Tensor]:
    """The photos of some epochs of training."""
    loader = data.train_dataloader()
    drawn = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        drawn.append(torch.cat([photos for photos, _ in loader]))
    return drawn


@pytest.mark.parametrize("workers", [0, 2])
def test_photos_kept_in_memory_are_those_read_from_disk(folder: Path, workers: int):
    read = epochs(photos_of(folder, share=0), 3)
    kept = epochs(photos_of(folder, workers), 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, read, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_photo_is_read_once_by_whichever_worker_and_by_no_later_job(folder: Path, workers: int):
    data = photos_of(folder, workers)
    (first,) = epochs(data, 1)
    for path in folder.rglob("*.png"):
        path.unlink()
    assert torch.equal(epochs(data, 2)[0], first)  # new workers, and new data sets, on the same photos


def test_what_does_not_fit_is_read_from_disk(folder: Path):
    data = photos_of(folder, share=0)
    dataset = data.dataset("train", augmented=True)
    whole = [dataset[index][0] for index in range(len(dataset))]
    size = 3 * 96 * 80 * 2  # before they are shrunk, two photos
    store = DecodedImageCache(20, size)
    some = ImageDataset(
        dataset.root, dataset.paths, dataset.labels, dataset.digests, data.resize_if_larger, data.train_transform, store
    )
    for _ in range(2):
        assert all(torch.equal(some[index][0], photo) for index, photo in enumerate(whole))
    assert some.store is not None
    assert sum(some.store.get(index) is not None for index in range(len(some))) in (2, 3, 4, 5, 6, 7, 8, 9)


def test_what_is_kept_can_still_fill_the_smallest_crop():
    side = max_useful_side(224, (0.5, 1.0), (0.75, 1.333))
    width = (0.5 * side * side * 0.75) ** 0.5  # of a square photo's smallest and narrowest crop
    assert 224 <= width < 225
    shrink = ResizeIfLarger(side)
    assert shrink(torch.zeros(3, 1000, 600, dtype=torch.uint8)).shape[-1] == side
    assert shrink(torch.zeros(3, 300, 200, dtype=torch.uint8)).shape == (3, 300, 200)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_part_of_the_colour_jitter_agrees_with_torchvisions(name: str):
    photo = torch.randint(60, 190, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    params: dict[str, Any] = dict.fromkeys(("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"))
    for factor in (-0.02, 0.01, 0.02) if name == "hue" else (0.8, 1.1, 1.2):
        params |= {"fn_idx": torch.arange(4), f"{name}_factor": factor}
        ours = FusedColorJitter(0.2, 0.2, 0.2, 0.02).transform(photo, params)
        theirs = getattr(v2.functional, f"adjust_{name}")(photo, factor)
        off = (ours.float() - theirs.float()).abs()
        assert off.max() <= 2  # of 255 levels
        assert off.mean() < 0.6


def test_the_augmentations_have_the_statistics_of_the_plain_ones(tmp_path: Path):
    """Torchvision's on PIL images, with the same settings: means and spreads over many draws."""
    from torchvision import transforms as plain

    ramp = torch.linspace(0, 255, 240).round().byte()
    pixels = torch.stack([ramp.expand(200, 240), ramp.flip(0).expand(200, 240), (ramp // 3 + 60).expand(200, 240)])
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    ours: Any = train_transform(64, (0.5, 1.0), (0.75, 1.333), 0.5, 0.2, 0.2, 0.2, 0.02)
    theirs: Any = plain.Compose(
        [
            plain.RandomResizedCrop(64, (0.5, 1.0), (0.75, 1.333)),
            plain.RandomHorizontalFlip(),
            plain.ColorJitter(0.2, 0.2, 0.2, 0.02),
            plain.PILToTensor(),
        ]
    )
    torch.manual_seed(0)
    statistics = []
    for draw, photo in ((ours, pixels), (theirs, image)):
        drawn = torch.stack([draw(photo) for _ in range(600)]).float()  # (600, 3, 64, 64)
        sides = drawn[:, 0, :, :8].mean((1, 2)) - drawn[:, 0, :, -8:].mean((1, 2))
        spread = drawn.mean((2, 3)).std(0)
        statistics.append(
            torch.cat([drawn.mean((0, 2, 3)), spread, drawn.std((2, 3)).mean(0), sides.abs().mean()[None]])
        )
        assert 0.42 < (sides > 0).float().mean() < 0.58  # flipped half of the time
    torch.testing.assert_close(*statistics, rtol=0.08, atol=1.5)
