"""A trained classifier under the parameter names of torchvision or timm, which can load it without this project."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models

from flowers.models.backbones import last_linear, registering_package, timm_name
from flowers.models.classifier import ImageClassifier, check_weights
from flowers.models.timm_backbones import classifier_layers

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers of GoogLeNet and Inception that only training uses
_TOLERANCE = 1e-3  # of a logit: rounding is far below, wrong weights far above


class PublishedClassifier(NamedTuple):
    """A classifier in the layout of torchvision or timm.

    Attributes:
        library: "torchvision" or "timm".
        architecture: Its name in the library, without a tag of weights.
        model_args: Arguments of the function that builds it, beside the number of classes.
        classifier: The names of its last layers, which hold the weights of the head.
        state_dict: Its parameters and buffers, contiguous and on the CPU.
    """

    library: Literal["torchvision", "timm"]
    architecture: str
    model_args: dict[str, Any]
    classifier: tuple[str, ...]
    state_dict: dict[str, Tensor]


def publish(model: ImageClassifier) -> PublishedClassifier:
    """Rename the parameters of a trained classifier, and check that the network of the library computes its logits.

    Args:
        model: In evaluation mode, on the CPU.

    Raises:
        ValueError: Neither library has the architecture, or its network cannot hold the weights.
    """
    assert not model.training, "dropout would change the logits"
    architecture, options = model.hparams["architecture"], dict(model.hparams["options"] or {})
    if package := registering_package(architecture):
        raise ValueError(f"{architecture} is a network of {package}: neither torchvision nor timm could load it")
    backbone = {name: value.detach().contiguous() for name, value in model.backbone.state_dict().items()}
    if any(name.startswith(_AUXILIARY) for name in backbone):
        backbone = {name: value for name, value in backbone.items() if not name.startswith(_AUXILIARY)}
        options["aux_logits"] = False
    timm = timm_name(architecture)
    library: Literal["torchvision", "timm"] = "torchvision" if timm is None else "timm"
    name = (timm or architecture).partition(".")[0]
    network = _build(library, name, options, len(model.classes))
    layers = classifier_layers(network) if timm else (last_linear(architecture, network)[0],)
    # Several layers average their logits, each for a part of the features that are averaged here.
    expected, head = network.state_dict(), model.head.state_dict()
    heads = {
        f"{layer}.{key}": value.detach().clone().view(expected.get(f"{layer}.{key}", value).shape)
        for layer in layers
        for key, value in head.items()
    }
    published = PublishedClassifier(library, name, options, layers, backbone | heads)
    try:
        network.load_state_dict(published.state_dict)
    except RuntimeError as error:
        reason = _last_line(error)
        raise ValueError(f"{architecture} of {library} cannot hold the weights of the head: {reason}") from error
    _check_logits(network.eval(), model)
    return published


@torch.inference_mode()
def _check_logits(network: nn.Module, model: ImageClassifier) -> None:
    side = model.hparams["image_size"]
    images = torch.randint(256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = model.normalize(images)
    if not torch.allclose(network(images), model(images), rtol=_TOLERANCE, atol=_TOLERANCE):
        name = model.hparams["architecture"]
        raise ValueError(f"{name}: the network of the library computes other logits from the same weights")


def read_published(published: PublishedClassifier, classes: Sequence[str], **hparams: Any) -> ImageClassifier:
    """Return the classifier whose parameters were renamed by `publish`, on the CPU.

    Args:
        published: From `publish`.
        classes: The names of the classes.
        hparams: Further arguments of `ImageClassifier`.

    Raises:
        ValueError: The parameters do not fit the network.
    """
    is_timm = published.library == "timm"
    architecture = f"timm/{published.architecture}" if is_timm else published.architecture
    state: dict[str, Tensor] = {}
    heads: dict[str, set[str]] = {layer: set() for layer in published.classifier}
    for name, value in published.state_dict.items():
        layer, _, key = name.rpartition(".")
        if layer in heads:
            heads[layer].add(key)
        state[f"head.{key}" if layer in heads else f"backbone.{name}"] = (
            value.flatten(1) if layer in heads and key == "weight" and value.ndim > 1 else value
        )
    check_weights(architecture, published.model_args, len(classes), state)
    lacking = [f"{layer}.{key}" for layer, keys in heads.items() for key in ("weight", "bias") if key not in keys]
    if lacking:
        raise ValueError(f"the weights do not fit {published.architecture}: {', '.join(lacking)} missing")
    model = ImageClassifier(architecture, classes, None, published.model_args, **hparams)
    model.load_state_dict(state)
    return model.eval()


def _build(library: str, architecture: str, options: Mapping[str, Any], class_count: int) -> nn.Module:
    if library == "timm":
        import timm

        network = timm.create_model(architecture, pretrained=False, num_classes=class_count, **options)
    else:
        network = models.get_model(architecture, weights=None, num_classes=class_count, **options)
    assert isinstance(network, nn.Module)
    return network


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()
