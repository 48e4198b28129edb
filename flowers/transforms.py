"""From a photo of any size to the pixels that the network takes, uint8 throughout: the model itself normalises."""

from collections.abc import Sequence

import torch
from torchvision.transforms import v2


def augmenting(
    image_size: int,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    flip: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> v2.Transform:
    """For training: a random crop resized to `image_size` pixels a side, a horizontal flip, colour jitter.

    Takes and gives uint8 (3, H, W); draws from torch's global generator.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, tuple(crop_scale), tuple(crop_ratio), antialias=True),
            v2.RandomHorizontalFlip(flip),
            v2.ColorJitter(brightness, contrast, saturation, hue),
        ]
    )


def centred(image_size: int, resize: int) -> v2.Transform:
    """For judging: the shorter side resized to `resize` pixels, then the centre `image_size` square."""
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(image_size)])


def normalising(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """uint8 (B, 3, H, W) to float32 of about zero mean and unit variance."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
