"""Grad-CAM heat maps (Selvaraju et al., ICCV 2017, arXiv:1610.02391), computed with captum."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from flowers.deploy.classifier import Classifier
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.runtime.extras import require_extra

_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

_LOCK = threading.Lock()  # one call at a time sets hooks on the layers, which other threads pass by

_LAYERS: WeakKeyDictionary[FrozenBackbone, nn.Module] = WeakKeyDictionary()  # found once: that takes a pass


def grad_cam(classifier: Classifier, pixels: Tensor, label: int | None = None) -> "HeatMaps":
    """Classify images, and compute how much each pixel speaks for a class, in one pass through the backbone.

    Args:
        classifier: A classifier of any architecture, on any device. Other threads may use it meanwhile.
        pixels: The input of the network, uint8 (B, 3, H, W); see `Classifier.pixels`.
        label: The class index. None for the most likely class of each image.

    Returns:
        The probabilities, heat maps and strangeness, on the CPU. A heat map is 1 at its maximum, and 0 where nothing
        speaks for the class. The probabilities are those of `Classifier.probabilities` to within rounding: padding, as
        there, would make a single image many times slower.

    Raises:
        ValueError: `label` is out of range, captum is not installed, the architecture has no feature map, or the
            classifier computes in 8 bits.
    """
    require_extra("a heat map", "explain", "captum")
    if label is not None and not 0 <= label < len(classifier.classes):
        raise ValueError(f"label={label}: expected a class index from 0 to {len(classifier.classes) - 1}")
    with _LOCK, torch.inference_mode(False):
        backbone = _differentiable(classifier)
        if backbone not in _LAYERS:
            _LAYERS[backbone] = _find_layer(classifier, pixels[:1].clone())
        parts = torch.split(pixels.clone(), backbone.batch_size)
        explained = [_explain_batch(classifier, part, label) for part in parts]
    probabilities, heat_maps, features = (torch.cat(each) for each in zip(*explained, strict=True))
    return HeatMaps(probabilities, heat_maps, classifier.strangeness(features))


class HeatMaps(NamedTuple):
    """What `grad_cam` returns.

    Attributes:
        probabilities: Calibrated, float64 (B, C).
        heat_maps: Float32 (B, H, W).
        strangeness: See `Classifier.strangeness`.
    """

    probabilities: Tensor
    heat_maps: Tensor
    strangeness: Tensor | None


def _explain_batch(classifier: Classifier, pixels: Tensor, label: int | None) -> tuple[Tensor, Tensor, Tensor]:
    from captum.attr import LayerAttribution, LayerGradCam

    features = logits = torch.empty(0)

    def score(images: Tensor) -> Tensor:
        """Return the logit (B,) of the class that is explained."""
        nonlocal features, logits
        features = _differentiable(classifier).forward(images).float()
        logits = classifier.model.logits(features)
        return logits.amax(1) if label is None else logits[:, label]

    with torch.enable_grad(), _exposed_layer(classifier) as exposed:
        cam = LayerGradCam(score, exposed).attribute(pixels, relu_attributions=True)  # (B, 1, h, w)
    heat_maps = LayerAttribution.interpolate(cam.detach().float().cpu(), tuple(pixels.shape[-2:]), "bilinear")[:, 0]
    heat_maps /= heat_maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(heat_maps.dtype).tiny)
    return classifier.calibrate(logits.detach()), heat_maps, features.detach()


def _differentiable(classifier: Classifier) -> FrozenBackbone:
    if not isinstance(classifier.backbone, FrozenBackbone):
        raise ValueError(
            "a heat map needs gradients, which engine=int8 does not have: load the run with engine=pytorch"
        )
    return classifier.backbone


class TokenLayer(NamedTuple):
    """A layer of a Vision Transformer: its name, and how many tokens come before those of the patches."""

    name: str
    prefix_tokens: int


def _token_layer(backbone: nn.Module) -> TokenLayer | None:
    """Return the layer before the last attention of a Vision Transformer; None for another network."""
    names = {module: name for name, module in backbone.named_modules()}
    if isinstance(backbone, VisionTransformer):
        return TokenLayer(names[backbone.encoder.layers[-1].ln_1], 1)
    blocks, prefix_tokens = getattr(backbone, "blocks", None), getattr(backbone, "num_prefix_tokens", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and isinstance(prefix_tokens, int):  # those of timm
        norm = getattr(blocks[-1], "norm1", None)
        return TokenLayer(names[norm], prefix_tokens) if isinstance(norm, nn.Module) else None
    return None


@torch.no_grad()
def _find_layer(classifier: Classifier, pixels: Tensor) -> nn.Module:
    """Return the layer whose output Grad-CAM weights.

    It is the last layer with a feature map of more than one position. Pooling layers do not count: after its last pool
    VGG has a quarter of the positions. In a Vision Transformer only the class token may matter after the last
    attention, so there it is the layer before that attention.
    """
    frozen, thread = _differentiable(classifier), threading.get_ident()
    network = frozen.network
    if (tokens := _token_layer(classifier.model.backbone)) is not None:
        return network.get_submodule(tokens.name)
    last: list[nn.Module] = []
    pooled: list[Tensor] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        if threading.get_ident() != thread:
            return
        if isinstance(module, _POOLING):
            pooled.append(output)
        is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1
        if is_map and not any(output is pool for pool in pooled):
            last[:] = [module]

    hooks = [module.register_forward_hook(record) for module in network.modules() if module is not network]
    try:
        frozen.forward(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in network.named_modules()}
    # After a feature map of the stem alone, the network continues with tokens in a layout of its own.
    if last and names[last[0]].startswith(("patch_embed", "stem")):
        raise ValueError(
            f"{classifier.model.hparams['architecture']}: Grad-CAM cannot tell which layer is a feature map"
        )
    if not last:
        raise ValueError(
            f"{classifier.model.hparams['architecture']} has no feature map for an image of {pixels.shape[-1]} pixels: "
            "Grad-CAM needs a larger data.image_size"
        )
    return last[0]


@contextmanager
def _exposed_layer(classifier: Classifier) -> Iterator[nn.Module]:
    """Yield a module that each forward pass of this thread calls with the feature maps (B, C, h, w) of the layer.

    The output of the layer is detached, so gradients of earlier layers are not computed.
    """
    exposed, thread = nn.Identity(), threading.get_ident()
    backbone = classifier.model.backbone
    layer, is_channels_last = _token_layer(backbone), getattr(backbone, "output_fmt", "") == "NHWC"  # Swin of timm

    def pass_through(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        if threading.get_ident() != thread:
            return output
        if layer is None:
            maps = output.detach().requires_grad_()
            if not is_channels_last:
                return torch.as_tensor(exposed(maps))
            return torch.as_tensor(exposed(maps.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        tokens, start = output.detach().requires_grad_(), layer.prefix_tokens  # (B, start + h * w, C)
        side = math.isqrt(tokens.shape[1] - start)
        patches = exposed(tokens[:, start:].transpose(1, 2).reshape(len(tokens), -1, side, side))
        return torch.cat([tokens[:, :start], patches.flatten(2).transpose(1, 2)], 1)

    hook = _LAYERS[_differentiable(classifier)].register_forward_hook(pass_through)
    try:
        yield exposed
    finally:
        hook.remove()
