"""Grad-CAM heat maps (Selvaraju et al., ICCV 2017, arXiv:1610.02391), by captum."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from flowers.models.classifier import ImageClassifier

_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


_LOCK = threading.Lock()  # while it is explained, a model carries a hook that another thread would run into


def grad_cam(model: ImageClassifier, photo: Tensor, label: int | None = None) -> Tensor:
    """How much each pixel speaks for a class, float32 (H, W) on the CPU: 1 where most, 0 where nothing does.

    The model is left as it was.

    Args:
        model: any architecture, on any device, in any mode; it is asked as in evaluation.
        photo: uint8 (3, H, W), prepared as the model wants it; see `Classifier.pixels`.
        label: the class's number; None for the one that the model finds likeliest.

    Raises ValueError for a number that no class has, and where captum is not installed.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        raise ValueError("heat maps need captum: pip install 'flowers[explain]'") from error
    if label is not None and not 0 <= label < len(model.classes):
        raise ValueError(f"label={label}: wanted a class's number, 0 to {len(model.classes) - 1}")
    with _LOCK, torch.inference_mode(False), _eval_mode(model):
        pixels = photo.to(model.device, copy=True)[None]
        layer, logits = _find_layer(model, pixels)
        label = int(logits.argmax()) if label is None else label
        with torch.enable_grad(), _exposed_layer(layer, model.backbone) as shown:
            cam = LayerGradCam(model, shown).attribute(pixels, label, relu_attributions=True)  # (1, 1, h, w)
        full = LayerAttribution.interpolate(cam.detach().cpu(), tuple(photo.shape[-2:]), "bilinear")[0, 0]
    return torch.as_tensor(full / full.max().clamp(min=torch.finfo(full.dtype).tiny))


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
    """The layer whose output Grad-CAM weighs, and the logits (1, C) of `pixels`.

    It is the last one that gives a map of more than one place, pools aside: with its final pool, VGG's last map would
    have a quarter of the places. After the last attention only a Vision Transformer's class token counts, so there it
    is the layer before.
    """
    last: list[nn.Module] = []
    pooled: list[Tensor] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, _POOLING):
            pooled.append(output)
        is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1
        if is_map and not any(output is pool for pool in pooled):
            last[:] = [module]

    hooks = [module.register_forward_hook(note) for module in model.backbone.modules()]
    try:
        logits = model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(model.backbone, VisionTransformer):
        return model.backbone.encoder.layers[-1].ln_1, logits
    if not last:
        raise ValueError(f"{model.hparams['architecture']} makes no map of a photo of {pixels.shape[-1]} pixels")
    return last[0], logits


@contextmanager
def _exposed_layer(layer: nn.Module, backbone: nn.Module) -> Iterator[nn.Module]:
    """A module that is called with the output of `layer`, as a map (B, C, h, w), in each forward pass.

    Gradients begin there: those of the layers before are not computed, and no parameter need ask for one.
    """
    shown = nn.Identity()

    def through(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        if not isinstance(backbone, VisionTransformer):
            return torch.as_tensor(shown(output.detach().requires_grad_()))
        tokens = output.detach().requires_grad_()  # (B, 1 + h * w, C), the class token first
        side = math.isqrt(tokens.shape[1] - 1)
        patches = shown(tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side))
        return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], 1)

    hook = layer.register_forward_hook(through)
    try:
        yield shown
    finally:
        hook.remove()
