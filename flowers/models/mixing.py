"""Mixing: each training image becomes a mixture of two, with the mixture of their labels as its target.

To add a way of mixing, write a function that makes a transform of torchvision from the number of classes, and a file
`conf/mixing/NAME.yaml` that names it.
"""

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

# Makes a function of normalized images (B, 3, H, W) and labels (B,) to images and probabilities (B, C).
Mixing = Callable[[int], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]


def mixup(num_classes: int, alpha: float = 0.2) -> v2.Transform:
    """Return mixup (arXiv:1710.09412): the weighted mean of two images, with a weight from Beta(`alpha`, `alpha`)."""
    return v2.MixUp(alpha=alpha, num_classes=num_classes)


def cutmix(num_classes: int, alpha: float = 1.0) -> v2.Transform:
    """Return CutMix (arXiv:1905.04899): a rectangle of one image in another, its area from Beta(`alpha`, `alpha`)."""
    return v2.CutMix(alpha=alpha, num_classes=num_classes)


def mixup_or_cutmix(num_classes: int, mixup_alpha: float = 0.2, cutmix_alpha: float = 1.0) -> v2.Transform:
    """Return one of the two for each batch, with even chances."""
    return v2.RandomChoice([mixup(num_classes, mixup_alpha), cutmix(num_classes, cutmix_alpha)])
