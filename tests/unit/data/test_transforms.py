from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from PIL import Image
from torchvision import transforms as plain
from torchvision.transforms import v2

from flowers.data.datamodule import ImageDataModule
from flowers.data.transforms import (
    FusedColorJitter,
    ResizeIfLarger,
    eval_transform,
    light_augmentation,
    max_useful_side,
    strong_augmentation,
    train_transform,
)
from flowers.runtime.seeding import seeded
from flowers.settings.config import load_config
from flowers.settings.config_reference import options_of
from flowers.settings.preprocessing import Preprocessing


def test_max_useful_side_still_fills_the_smallest_crop():
    side = max_useful_side(224, (0.5, 1.0), (0.75, 1.333))
    width = (0.5 * side * side * 0.75) ** 0.5  # of the smallest and narrowest crop of a square image
    assert 224 <= width < 225
    resize = ResizeIfLarger(side)
    assert resize(torch.zeros(3, 1000, 600, dtype=torch.uint8)).shape[-1] == side
    assert resize(torch.zeros(3, 300, 200, dtype=torch.uint8)).shape == (3, 300, 200)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_fused_color_jitter_agrees_with_torchvision_in_each_part(name: str):
    image = torch.randint(60, 190, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    params: dict[str, Any] = dict.fromkeys(("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"))
    for factor in (-0.02, 0.01, 0.02) if name == "hue" else (0.8, 1.1, 1.2):
        params |= {"fn_idx": torch.arange(4), f"{name}_factor": factor}
        fused = FusedColorJitter(0.2, 0.2, 0.2, 0.02).transform(image, params)
        reference = getattr(v2.functional, f"adjust_{name}")(image, factor)
        difference = (fused.float() - reference.float()).abs()
        assert difference.max() <= 2  # of 255 levels
        assert difference.mean() < 0.6


def test_train_transform_has_the_statistics_of_the_torchvision_transforms_on_pil_images():
    ramp = torch.linspace(0, 255, 240).round().byte()
    pixels = torch.stack([ramp.expand(200, 240), ramp.flip(0).expand(200, 240), (ramp // 3 + 60).expand(200, 240)])
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    fast: Any = train_transform(64, (0.5, 1.0), (0.75, 1.333), 0.5, 0.2, 0.2, 0.2, 0.02)
    reference: Any = plain.Compose(
        [
            plain.RandomResizedCrop(64, (0.5, 1.0), (0.75, 1.333)),
            plain.RandomHorizontalFlip(),
            plain.ColorJitter(0.2, 0.2, 0.2, 0.02),
            plain.PILToTensor(),
        ]
    )
    torch.manual_seed(0)
    statistics = []
    for transform, source in ((fast, pixels), (reference, image)):
        images = torch.stack([transform(source) for _ in range(600)]).float()  # (600, 3, 64, 64)
        sides = images[:, 0, :, :8].mean((1, 2)) - images[:, 0, :, -8:].mean((1, 2))
        spread = images.mean((2, 3)).std(0)
        statistics.append(
            torch.cat([images.mean((0, 2, 3)), spread, images.std((2, 3)).mean(0), sides.abs().mean()[None]])
        )
        assert 0.42 < (sides > 0).float().mean() < 0.58  # half of them are flipped
    torch.testing.assert_close(*statistics, rtol=0.08, atol=1.5)


@pytest.mark.parametrize("name", options_of("data/augmentation"))
def test_augmentation_is_a_function_of_the_seed_and_keeps_the_size(name: str):
    path = load_config([f"data/augmentation={name}", "run_dir=x"]).data.to_dict()["augmentation"]["_target_"]
    augment = get_object(path)(
        image_size=48, resize=54, crop_scale=[0.5, 1.0], crop_ratio=[0.75, 1.333], hflip_prob=0.5, hue=0.02
    )
    image = torch.randint(256, (3, 80, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second, other = (seeded_output(augment, image, seed) for seed in (1, 1, 2))
    assert (first.dtype, first.shape) == (torch.uint8, (3, 48, 48))
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (name == "none")


def seeded_output(augment: Any, image: torch.Tensor, seed: int) -> torch.Tensor:
    with seeded(seed):
        return torch.as_tensor(augment(image))


def test_the_augmentation_is_part_of_the_key_of_cached_views():
    plain_data, light, erasing = (
        ImageDataModule.from_settings("images", augmentation=augmentation)
        for augmentation in (None, light_augmentation, partial(strong_augmentation, erasing=0.5))
    )
    keys = [data.transform_settings(augmented=True) for data in (plain_data, light, erasing)]
    assert "augmentation" not in keys[0]
    assert keys[1]["augmentation"] == "flowers.data.transforms.light_augmentation {}"
    assert keys[2]["augmentation"] == 'flowers.data.transforms.strong_augmentation {"erasing": 0.5}'
    assert plain_data.transform_settings() == erasing.transform_settings()


@pytest.mark.parametrize("shape", [(1, 65_000), (2_000_000, 20), (40, 2_000)])
def test_eval_transform_resizes_the_center_of_a_strip_alone(shape: tuple[int, int]):
    center = torch.arange(min(shape) * 9, dtype=torch.uint8).reshape(1, -1, 9)
    image = torch.zeros((3, *shape), dtype=torch.uint8)
    middle = max(shape) // 2
    if shape[0] < shape[1]:
        image[:, :, middle - 4 : middle + 5] = center
    else:
        image[:, middle - 4 : middle + 5] = center.transpose(1, 2)
    found = eval_transform(Preprocessing(24, 32))(image)
    short = v2.functional.center_crop(image, [min(side, 16 * min(shape)) for side in shape])
    assert torch.equal(found, v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(24)])(short))
