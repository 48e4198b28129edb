"""Grad-CAM heat maps (Selvaraju et al., ICCV 2017, arXiv:1610.02391), computed with captum."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from flowers.models.classifier import ImageClassifier
from flowers.runtime.config import require_extra

_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


_LOCK = threading.Lock()  # during a call the model carries a hook, which would also run in other threads


def grad_cam(model: ImageClassifier, image: Tensor, label: int | None = None) -> Tensor:
    """Compute how much each pixel speaks for a class.

    The model runs in evaluation mode. Its modes, parameters and gradients are unchanged afterwards.

    Args:
        model: A model of any architecture, on any device.
        image: The input of the network, uint8 (3, H, W); see `Classifier.pixels`.
        label: The class index. None for the most likely class.

    Returns:
        Float32 (H, W) on the CPU: 1 at the maximum, 0 where nothing speaks for the class.

    Raises:
        ValueError: `label` is out of range, captum is not installed, or the architecture has no feature map.
    """
    require_extra("a heat map", "explain", "captum")
    from captum.attr import LayerAttribution, LayerGradCam

    if label is not None and not 0 <= label < len(model.classes):
        raise ValueError(f"label={label}: expected a class index from 0 to {len(model.classes) - 1}")
    with _LOCK, torch.inference_mode(False), _eval_mode(model):
        pixels = image.to(model.device, copy=True)[None]
        layer, logits = _find_layer(model, pixels)
        label = int(logits.argmax()) if label is None else label
        with torch.enable_grad(), _exposed_layer(layer, model.backbone) as exposed:
            cam = LayerGradCam(model, exposed).attribute(pixels, label, relu_attributions=True)  # (1, 1, h, w)
        heat_map = LayerAttribution.interpolate(cam.detach().cpu(), tuple(image.shape[-2:]), "bilinear")[0, 0]
    return torch.as_tensor(heat_map / heat_map.max().clamp(min=torch.finfo(heat_map.dtype).tiny))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def _find_layer(model: ImageClassifier, pixels: Tensor) -> tuple[nn.Module, Tensor]:
    """Return the layer whose output Grad-CAM weights, and the logits (1, C) of `pixels`.

    It is the last layer with a feature map of more than one position. Pooling layers do not count: after its last pool
    VGG has a quarter of the positions. In a Vision Transformer only the class token matters after the last attention,
    so there it is the layer before that attention.
    """
    last: list[nn.Module] = []
    pooled: list[Tensor] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, _POOLING):
            pooled.append(output)
        is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1
        if is_map and not any(output is pool for pool in pooled):
            last[:] = [module]

    hooks = [module.register_forward_hook(record) for module in model.backbone.modules()]
    try:
        logits = model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(model.backbone, VisionTransformer):
        return model.backbone.encoder.layers[-1].ln_1, logits
    if not last:
        raise ValueError(
            f"{model.hparams['architecture']} has no feature map for an image of {pixels.shape[-1]} pixels: "
            "Grad-CAM needs a larger data.image_size"
        )
    return last[0], logits


@contextmanager
def _exposed_layer(layer: nn.Module, backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield a module that each forward pass calls with the output of `layer` as a feature map (B, C, h, w).

    The output is detached, so gradients of earlier layers are not computed and no parameter has to require one.
    """
    exposed = nn.Identity()

    def pass_through(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        if not isinstance(backbone, VisionTransformer):
            return torch.as_tensor(exposed(output.detach().requires_grad_()))
        tokens = output.detach().requires_grad_()  # (B, 1 + h * w, C), the class token first
        side = math.isqrt(tokens.shape[1] - 1)
        patches = exposed(tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side))
        return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], 1)

    hook = layer.register_forward_hook(pass_through)
    try:
        yield exposed
    finally:
        hook.remove()
