"""From a photo of any size to the pixels that the network takes, uint8 throughout: the model itself normalises."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
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


class Shrink:
    """Makes the shorter side of a photo (3, H, W) `side` pixels where it has more."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, photo: Tensor) -> Tensor:
        """The photo itself where it is small enough."""
        if min(photo.shape[-2:]) <= self.side:
            return photo
        return torch.as_tensor(v2.functional.resize(photo, [self.side], antialias=True))

    def __repr__(self) -> str:
        return f"Shrink({self.side})"


def useful_side(image_size: int, crop_scale: Sequence[float], crop_ratio: Sequence[float]) -> int:
    """The shorter side of a photo whose smallest and narrowest random crop still has `image_size` pixels a side."""
    narrowest = min(crop_ratio[0], 1 / crop_ratio[1])
    return math.ceil(image_size / math.sqrt(max(crop_scale[0], 0.01) * narrowest))


def normalising(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """uint8 (B, 3, H, W) to float32 of about zero mean and unit variance."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
