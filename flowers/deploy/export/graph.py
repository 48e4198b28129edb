"""A trained classifier as one graph, from a decoded image to calibrated probabilities."""

import copy

import torch
from torch import Tensor, nn

from flowers.features.frozen_backbone import fuse_conv_bn
from flowers.models.classifier import ImageClassifier


class ExportableClassifier(nn.Module):
    """uint8 (B, 3, H, W) of any H and W to probabilities (B, C) in float32.

    Photos are resized and cropped as by `transforms.centred`, to within one level of 255, whatever exports the graph:
    the antialiasing filter is two matrix products, whose weights are computed from H and W in the graph itself.

    Args:
        model: trained; what is used of it is copied, BatchNorm folded into the convolutions.
        temperature: what its logits are divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ImageClassifier, temperature: float) -> None:
        super().__init__()
        self.image_size, self.resize = int(model.hparams["image_size"]), int(model.hparams["resize"])
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(model.hparams[name]).view(3, 1, 1))
        self.backbone, self.head = fuse_conv_bn(model.backbone), copy.deepcopy(model.head)
        self.temperature = temperature
        for parameter in self.parameters():  # a file keeps them as they lie in memory: channels last is no help there
            parameter.requires_grad_(False)
            parameter.data = parameter.data.contiguous()
        self.cpu().eval()

    def forward(self, photos: Tensor) -> Tensor:
        """See the class."""
        pixels = (self.centred(photos) - self.mean) / self.std
        logits: Tensor = self.head(self.backbone(pixels))
        return (logits / self.temperature).softmax(1)

    def centred(self, photos: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to whole numbers (B, 3, S, S) in float32, S being the image size."""
        height, width = (torch.scalar_tensor(side, dtype=torch.int64) for side in photos.shape[-2:])
        shorter = torch.minimum(height, width)
        rows = self._taps(height, shorter, torch.arange(photos.shape[-2]))
        columns = self._taps(width, shorter, torch.arange(photos.shape[-1]))
        # Rounded in between and, half up, as torchvision does with uint8.
        narrowed = (photos.float() @ columns.T + 0.5).floor()
        return (rows @ narrowed + 0.5).floor()

    def _taps(self, side: Tensor, shorter: Tensor, pixels: Tensor) -> Tensor:
        """The share (S, side) that each pixel along a side has in each pixel of the crop; rows add up to 1."""
        scaled = self.resize * side
        resized = ((scaled - scaled % shorter) / shorter).round()  # scaled // shorter: many runtimes divide in float32
        first = ((resized - self.image_size) / 2).round()  # half to even: as in Python, so in torchvision
        scale = side / resized
        centres = (torch.arange(self.image_size) + first + 0.5) * scale
        distances = (pixels + 0.5 - centres[:, None]).abs() / scale.clamp(min=1)
        shares = (1 - distances).clamp(min=0)
        return shares / shares.sum(1, keepdim=True)
