"""Test-time augmentation: several views of each image, over which a prediction averages."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

_CROP_SHARE = 7 / 8  # of the side, as from 256 to 224 pixels


def tta_views(images: Tensor, tta: str) -> list[Tensor]:
    """Return views of network inputs (B, 3, S, S), each of that shape.

    A head is linear: its logits for the mean features are its mean logits.

    Args:
        images: uint8 or float.
        tta: "none" for the images alone; "flip" also for their mirror images; "five_crop" also for the center and the
            corners, enlarged, and for their mirror images.
    """
    if tta == "none":
        return [images]
    views = [images]
    if tta == "five_crop":
        side = images.shape[-1]
        crops = v2.functional.five_crop(images, [round(_CROP_SHARE * side)] * 2)
        views += [torch.as_tensor(v2.functional.resize(crop, [side, side], antialias=False)) for crop in crops]
    return [*views, *(view.flip(-1) for view in views)]


def mean_over_views(network: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """Return the mean features of the views of images; see `tta_views`."""
    features = [network(view) for view in tta_views(images, tta)]
    return features[0] if len(features) == 1 else torch.stack(features).float().mean(0)
