"""Image transforms. All take and return uint8 tensors; the model normalizes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2


def train_transform(
    image_size: int,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    hflip_prob: float,
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
            v2.RandomHorizontalFlip(hflip_prob),
            FusedColorJitter(brightness, contrast, saturation, hue),
        ]
    )


def eval_transform(image_size: int, resize: int) -> v2.Transform:
    """For judging: the shorter side resized to `resize` pixels, then the centre `image_size` square."""
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(image_size)])


_GRAY_WEIGHTS = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue


class FusedColorJitter(v2.ColorJitter):  # type: ignore[misc]
    """Torchvision's jitter, drawn as there and of the same effect within two levels of 255, in less time.

    Brightness, contrast and saturation are affine maps of a pixel's colour: those in a row are applied as one. The hue
    is turned without the detour over saturation and value. Pixels are clipped and rounded once, at the end.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Takes and gives uint8 (3, H, W)."""
        pixels = inpt.flatten(1).float()  # (3, H * W)
        factors = [("brightness", "contrast", "saturation", "hue")[step] for step in params["fn_idx"].tolist()]
        matrix, offset, mean = torch.eye(3), torch.zeros(3), pixels.mean(1)
        for name in factors:
            factor = params[f"{name}_factor"]
            if factor is None:
                continue
            if name == "brightness":
                matrix, offset = matrix * factor, offset * factor
            elif name == "contrast":
                grey = _GRAY_WEIGHTS @ (matrix @ mean + offset)
                matrix, offset = matrix * factor, offset * factor + (1 - factor) * grey
            elif name == "saturation":
                blend = torch.eye(3) * factor + (1 - factor) * _GRAY_WEIGHTS.expand(3, 3)
                matrix, offset = blend @ matrix, blend @ offset
            else:
                pixels = _rotate_hue(torch.addmm(offset[:, None], matrix, pixels).clamp_(0, 255), factor)
                matrix, offset, mean = torch.eye(3), torch.zeros(3), pixels.mean(1)
        twisted = torch.addmm(offset[:, None], matrix, pixels).add_(0.5).clamp_(0, 255)
        return twisted.to(torch.uint8).view(inpt.shape)


def _rotate_hue(pixels: Tensor, share: float) -> Tensor:
    """Colours (3, N) with their hue turned by a share of the circle: https://en.wikipedia.org/wiki/HSL_and_HSV."""
    red, green, blue = pixels
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = chroma.clamp(min=1e-6).reciprocal_()
    # The hue in sixths of the circle, from red, by which channel is the greatest.
    hue = torch.where(value == green, (blue - red).mul_(inverse).add_(2), (red - green).mul_(inverse).add_(4))
    hue = torch.where(value == red, (green - blue).mul_(inverse), hue)
    turned = torch.empty_like(pixels)
    for channel, place in enumerate((3.0, 1.0, -1.0)):  # of the hue where that channel is lowest
        far = hue + (place + 6 * share)
        far -= (far + 3).div_(6).floor_().mul_(6)  # now from -3 to 3
        turned[channel] = value - (2 - far.abs_()).clamp_(0, 1).mul_(chroma)
    return turned


class ResizeIfLarger:
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


def max_useful_side(image_size: int, crop_scale: Sequence[float], crop_ratio: Sequence[float]) -> int:
    """The shorter side of a photo whose smallest and narrowest random crop still has `image_size` pixels a side."""
    narrowest = min(crop_ratio[0], 1 / crop_ratio[1])
    return math.ceil(image_size / math.sqrt(max(crop_scale[0], 0.01) * narrowest))
