"""A trained classifier as one graph, from a decoded image to calibrated probabilities."""

import copy

import torch
from torch import Tensor, nn

from flowers.features.frozen_backbone import fuse_conv_bn
from flowers.features.strangeness import Strangeness
from flowers.features.tta import tta_views
from flowers.models.classifier import ImageClassifier


class ExportableClassifier(nn.Module):
    """Maps images, uint8 (B, 3, H, W) of any H and W, to calibrated probabilities, float32 (B, C).

    With `strangeness`, a second output is the strangeness of each image, float32 (B, 1).

    The graph resizes and crops as `flowers.data.transforms.eval_transform` does, to within one of 255 levels, in every
    exported format. The antialiasing filter is two matrix products whose weights the graph computes from H and W.

    Args:
        model: A trained model. Its parts are copied, with BatchNorm fused into the convolutions.
        temperature: The logits are divided by it.
        tta: See `tta_views`.
        strangeness: Of a run that rejects images of none of its classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: ImageClassifier, temperature: float, tta: str = "none", strangeness: Strangeness | None = None
    ) -> None:
        super().__init__()
        self.tta = tta
        preprocessing = model.preprocessing
        self.image_size, self.resize = preprocessing.image_size, preprocessing.resize
        self.kernel = {"bilinear": _triangle, "bicubic": _cubic}[preprocessing.interpolation]
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1))
        self.backbone, self.head = fuse_conv_bn(model.backbone), copy.deepcopy(model.head)
        self.temperature, self.strangeness = temperature, copy.deepcopy(strangeness)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.contiguous()  # files keep the memory layout; channels last is no use there
        self.cpu().eval()

    def forward(self, photos: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the outputs. The argument's name is the name of the exported input."""
        views = tta_views(self.resize_and_crop(photos), self.tta)
        by_view = [self.backbone((view - self.mean) / self.std) for view in views]
        features = by_view[0] if len(by_view) == 1 else torch.stack(by_view).mean(0)
        logits: Tensor = self.head(features)
        probabilities = (logits / self.temperature).softmax(1)
        if self.strangeness is None:
            return probabilities
        return probabilities, self.strangeness(features)[:, None]

    def resize_and_crop(self, images: Tensor) -> Tensor:
        """Return the center crops as whole numbers in float32.

        Args:
            images: uint8 (B, 3, H, W).

        Returns:
            Float32 (B, 3, S, S) with values from 0 to 255, where S is the image size.
        """
        height, width = (torch.scalar_tensor(side, dtype=torch.int64) for side in images.shape[-2:])
        shorter = torch.minimum(height, width)
        row_weights = self._resize_weights(height, shorter, torch.arange(images.shape[-2]))
        column_weights = self._resize_weights(width, shorter, torch.arange(images.shape[-1]))
        # Like torchvision for uint8, round after each of the two passes, half up. A cubic kernel may leave 0 to 255.
        narrowed = (images.float() @ column_weights.T + 0.5).floor().clamp(0, 255)
        return (row_weights @ narrowed + 0.5).floor().clamp(0, 255)

    def _resize_weights(self, side: Tensor, shorter: Tensor, pixels: Tensor) -> Tensor:
        """Return the weight (S, side) of each input pixel in each pixel of the crop. Each row sums to 1."""
        scaled = self.resize * side
        resized = ((scaled - scaled % shorter) / shorter).round()  # many runtimes compute `//` in float32
        first = ((resized - self.image_size) / 2).round()  # half to even, as in Python and torchvision
        scale = side / resized
        centers = (torch.arange(self.image_size) + first + 0.5) * scale
        distances = (pixels + 0.5 - centers[:, None]).abs() / scale.clamp(min=1)
        weights = self.kernel(distances)
        return weights / weights.sum(1, keepdim=True)


def _triangle(distances: Tensor) -> Tensor:
    """Return the kernel of bilinear interpolation at distances of at least 0."""
    return (1 - distances).clamp(min=0)


def _cubic(distances: Tensor) -> Tensor:
    """Return the cubic kernel with a = -0.5, which Pillow and torchvision use with antialiasing (Keys, 1981)."""
    near, far = distances.clamp(max=1), distances.clamp(1, 2)  # the second polynomial is 0 at 1 and at 2
    return (1.5 * near - 2.5) * near**2 + 1 + (((-0.5 * far + 2.5) * far - 4) * far + 2)
