"""Image transforms. All take and return uint8 tensors; the model normalizes."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.transforms import v2

from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.values import Interpolation

# Raise it with every change of this module that changes pixels: cached features are then computed again.
TRANSFORM_VERSION = 1

_LONGEST_ASPECT = 32  # of what is resized; the pixels that the center square needs are far inside


def train_transform(
    image_size: int,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    hflip_prob: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    interpolation: Interpolation = "bilinear",
) -> v2.Transform:
    """Return the training augmentation: random resized crop, horizontal flip, color jitter.

    It maps uint8 (3, H, W) to uint8 (3, image_size, image_size) and draws from the global generator of torch.

    Args:
        image_size: Side of the crop after resizing, in pixels.
        crop_scale: Smallest and largest share of the image area in the crop.
        crop_ratio: Smallest and largest width / height of the crop.
        hflip_prob: Probability of a horizontal flip.
        brightness: b draws a factor from 1 - b to 1 + b; likewise `contrast` and `saturation`.
        contrast: See `brightness`.
        saturation: See `brightness`.
        hue: Largest rotation of the hue, as a share of the color circle.
        interpolation: How the crop is resized, with antialiasing.
    """
    return v2.Compose(
        [
            _random_resized_crop(image_size, crop_scale, crop_ratio, interpolation),
            v2.RandomHorizontalFlip(hflip_prob),
            FusedColorJitter(brightness, contrast, saturation, hue),
        ]
    )


@dataclass(frozen=True)
class Augmentation:
    """How training images are drawn; see `train_transform`.

    Attributes:
        crop_scale: Smallest and largest share of the image area in a training crop, above 0 and at most 1.
        crop_ratio: Smallest and largest width / height of a training crop, above 0.
        hflip_prob: Probability that a training image is flipped horizontally, from 0 to 1.
        brightness: Training images are multiplied by a factor from 1 - `brightness` to 1 + `brightness`; at least 0.
        contrast: The same for the contrast.
        saturation: The same for the saturation.
        hue: Largest rotation of the hue, as a share of the color circle, from 0 to 0.5.
        augmentation: Makes the transform from `image_size`, `resize`, `interpolation` and the settings above, given by
            name; None for `train_transform`. It maps uint8 (3, H, W) to uint8 (3, image_size, image_size) and draws
            from the global generator of torch.
    """

    crop_scale: Sequence[float] = (0.5, 1.0)
    crop_ratio: Sequence[float] = (0.75, 1.333)
    hflip_prob: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    augmentation: Callable[..., Callable[[Tensor], Tensor]] | None = None

    def drawn(self) -> dict[str, Any]:
        """Return the settings by name, ready for JSON, without `augmentation`."""
        names = (each.name for each in fields(self) if each.name != "augmentation")
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, Sequence) else value for name, value in values.items()}

    def settings(self, preprocessing: Preprocessing) -> dict[str, Any]:
        """Return all that determines the pixels of `transform`, ready for JSON, as part of a cache key."""
        named = {} if self.augmentation is None else {"augmentation": _describe(self.augmentation)}
        return eval_settings(preprocessing) | self.drawn() | named

    def transform(self, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
        """Return the training transform."""
        settings = self.drawn() | {name: getattr(preprocessing, name) for name in ("image_size", "interpolation")}
        if self.augmentation is None:
            return cast(Callable[[Tensor], Tensor], train_transform(**settings))
        return self.augmentation(**settings, resize=preprocessing.resize)

    def resize_if_larger(self, preprocessing: Preprocessing) -> "ResizeIfLarger":
        """Return a resizing of decoded images that loses nothing that a view of them may need."""
        side = max_useful_side(preprocessing.image_size, self.crop_scale, self.crop_ratio)
        return ResizeIfLarger(max(preprocessing.resize, side), preprocessing.interpolation)


def _describe(function: Callable[..., Any]) -> str:
    """Return the name of a function and the arguments that it is given, as part of a cache key."""
    target, given = (function.func, function.keywords) if isinstance(function, functools.partial) else (function, {})
    return f"{target.__module__}.{target.__qualname__} {json.dumps(given, sort_keys=True)}"


def _random_resized_crop(
    image_size: int, crop_scale: Sequence[float], crop_ratio: Sequence[float], interpolation: Interpolation
) -> v2.Transform:
    mode = v2.InterpolationMode(interpolation)
    return v2.RandomResizedCrop(image_size, tuple(crop_scale), tuple(crop_ratio), mode, antialias=True)


def no_augmentation(image_size: int, resize: int, interpolation: Interpolation = "bilinear", **_: Any) -> v2.Transform:
    """Return `eval_transform`: training images look as in validation."""
    return eval_transform(Preprocessing(image_size, resize, interpolation))


def light_augmentation(
    image_size: int,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    hflip_prob: float,
    interpolation: Interpolation = "bilinear",
    **_: Any,
) -> v2.Transform:
    """Return random resized crops and horizontal flips; see `train_transform`."""
    return v2.Compose(
        [
            _random_resized_crop(image_size, crop_scale, crop_ratio, interpolation),
            v2.RandomHorizontalFlip(hflip_prob),
        ]
    )


_POLICIES = {"trivial": [v2.TrivialAugmentWide], "rand": [v2.RandAugment], None: []}


def strong_augmentation(
    image_size: int, policy: str | None = "trivial", erasing: float = 0.1, **settings: Any
) -> v2.Transform:
    """Return `light_augmentation`, then the operations of a policy, then random erasing.

    Args:
        image_size: See `train_transform`.
        policy: "trivial" for TrivialAugment, "rand" for RandAugment, None for no operations.
        erasing: Probability that a part of the image is erased.
        settings: The other settings of `train_transform`.
    """
    operations = [operation() for operation in _POLICIES[policy]]
    return v2.Compose([light_augmentation(image_size, **settings), *operations, v2.RandomErasing(erasing, value=127)])


def eval_transform(preprocessing: Preprocessing) -> v2.Transform:
    """Return the evaluation transform: resize the shorter side to `resize` pixels, then crop the center square.

    It maps uint8 (3, H, W) to uint8 (3, image_size, image_size). Of a strip, only the center is resized.
    """
    resize = v2.Resize(preprocessing.resize, v2.InterpolationMode(preprocessing.interpolation), antialias=True)
    return v2.Compose([_crop_strip, resize, v2.CenterCrop(preprocessing.image_size)])


def eval_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return all that determines the pixels of `eval_transform`, ready for JSON, as part of a cache key."""
    size = {"image_size": preprocessing.image_size, "resize": preprocessing.resize}
    settings: dict[str, Any] = {"version": TRANSFORM_VERSION, **size}
    if preprocessing.interpolation != "bilinear":  # the only one of earlier versions, whose caches stay valid
        settings |= {"interpolation": preprocessing.interpolation}
    return settings


def _crop_strip(image: Tensor) -> Tensor:
    """Return the center of an image (3, H, W) that is longer than `_LONGEST_ASPECT` times its shorter side.

    An image of 1 x 65,000 pixels that is resized to a shorter side of 256 takes 13 GB.
    """
    longest = _LONGEST_ASPECT * min(image.shape[-2:])
    if max(image.shape[-2:]) <= longest:
        return image
    return torch.as_tensor(v2.functional.center_crop(image, [min(side, longest) for side in image.shape[-2:]]))


def max_useful_side(image_size: int, crop_scale: Sequence[float], crop_ratio: Sequence[float]) -> int:
    """Return the shorter side at which the smallest and narrowest random crop still has `image_size` pixels a side."""
    narrowest = min(crop_ratio[0], 1 / crop_ratio[1])
    return math.ceil(image_size / math.sqrt(max(crop_scale[0], 0.01) * narrowest))


class ResizeIfLarger:
    """Resize an image (3, H, W) so that its shorter side has at most `side` pixels."""

    def __init__(self, side: int, interpolation: Interpolation = "bilinear") -> None:
        self.side, self.mode = side, v2.InterpolationMode(interpolation)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the resized image, or the image itself if it is small enough."""
        if min(image.shape[-2:]) <= self.side:
            return image
        return torch.as_tensor(v2.functional.resize(image, [self.side], self.mode, antialias=True))


_GRAY_WEIGHTS = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue


class FusedColorJitter(v2.ColorJitter):  # type: ignore[misc]
    """A faster `ColorJitter`: the same random draws, and the same result to within 2 of 255 levels.

    Brightness, contrast and saturation are affine maps of the color of a pixel: consecutive ones are applied as one.
    The hue is rotated without a conversion to HSV and back. Pixels are clipped and rounded once, at the end.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the drawn factors to uint8 (3, H, W)."""
        pixels = inpt.flatten(1).float()  # (3, H * W)
        steps = [("brightness", "contrast", "saturation", "hue")[step] for step in params["fn_idx"].tolist()]
        matrix, offset, mean = torch.eye(3), torch.zeros(3), pixels.mean(1)
        for name in steps:
            factor = params[f"{name}_factor"]
            if factor is None:
                continue
            if name == "brightness":
                matrix, offset = matrix * factor, offset * factor
            elif name == "contrast":
                gray = _GRAY_WEIGHTS @ (matrix @ mean + offset)
                matrix, offset = matrix * factor, offset * factor + (1 - factor) * gray
            elif name == "saturation":
                blend = torch.eye(3) * factor + (1 - factor) * _GRAY_WEIGHTS.expand(3, 3)
                matrix, offset = blend @ matrix, blend @ offset
            else:
                pixels = _rotate_hue(torch.addmm(offset[:, None], matrix, pixels).clamp_(0, 255), factor)
                matrix, offset, mean = torch.eye(3), torch.zeros(3), pixels.mean(1)
        jittered = torch.addmm(offset[:, None], matrix, pixels).add_(0.5).clamp_(0, 255)
        return jittered.to(torch.uint8).view(inpt.shape)


def _rotate_hue(pixels: Tensor, turn: float) -> Tensor:
    """Return colors (3, N) with the hue rotated by `turn` of the circle: https://en.wikipedia.org/wiki/HSL_and_HSV."""
    red, green, blue = pixels
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = chroma.clamp(min=1e-6).reciprocal_()
    # The hue in sixths of the circle, counted from red. The formula depends on which channel is largest.
    hue = torch.where(value == green, (blue - red).mul_(inverse).add_(2), (red - green).mul_(inverse).add_(4))
    hue = torch.where(value == red, (green - blue).mul_(inverse), hue)
    rotated = torch.empty_like(pixels)
    for channel, shift in enumerate((3.0, 1.0, -1.0)):  # minus the hue at which that channel is lowest
        distance = hue + (shift + 6 * turn)
        distance -= (distance + 3).div_(6).floor_().mul_(6)  # wrapped to -3 … 3
        rotated[channel] = value - (2 - distance.abs_()).clamp_(0, 1).mul_(chroma)
    return rotated
