"""The network: a backbone that turns an image into features, and a linear head. Nothing here trains it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from flowers.models.backbones import (
    backbone_shapes,
    build_backbone,
    is_finite,
    registering_package,
    state_dict_sha256,
    weights_problem,
)
from flowers.runtime.seeding import seeded
from flowers.settings.preprocessing import Preprocessing

_IMAGENET = Preprocessing()


def normalize(preprocessing: Preprocessing) -> v2.Transform:
    """Return a transform of uint8 (B, 3, H, W) to float32 of about zero mean and unit variance."""
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def make_network(path: str | Path, checkpoint: Mapping[str, Any]) -> "Network":
    """Return the network of a checkpoint that `read_checkpoint` returned, in evaluation mode on the CPU.

    Raises:
        ValueError: The weights are incomplete, not finite, or do not fit the hyperparameters.
    """
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    if not any(name.startswith("backbone.") for name in state):
        raise ValueError(
            f"{path}: this head-stage checkpoint needs the backbone that the run started from: resume the run, or use "
            "best.ckpt"
        )
    try:
        check_weights(hparams["architecture"], hparams["options"] or {}, len(hparams["classes"]), state)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    names = ("architecture", "classes", "options", "split_digest", "weights_digest")
    network = Network(**{name: hparams[name] for name in names}, preprocessing=Preprocessing.from_dict(hparams))
    network.load_state_dict(state)
    return network.eval()


def check_weights(architecture: str, options: Mapping[str, Any], class_count: int, state: Mapping[str, Tensor]) -> None:
    """Check that weights are complete and finite and fit a network, before that is built.

    Args:
        architecture: See `build_backbone`.
        options: See `build_backbone`.
        class_count: The number of classes.
        state: The weights by the names of `Network`.

    Raises:
        ValueError: They are not.
    """
    shapes, width = backbone_shapes(architecture, options, state)
    expected = {f"backbone.{name}": shape for name, shape in shapes.items()}
    expected |= {"head.weight": torch.Size([class_count, width]), "head.bias": torch.Size([class_count])}
    if problem := weights_problem(expected, {name: value.shape for name, value in state.items()}):
        raise ValueError(f"the weights do not fit {architecture}: {problem}")
    for name, value in state.items():
        # A view may repeat a few numbers any number of times.
        is_whole = value.layout is torch.strided and value.untyped_storage().nbytes() >= value.nbytes
        if not is_whole or not is_finite(value):
            raise ValueError(f"some numbers in its weights {name} are infinite or missing: train the run again")


class Network(nn.Module):
    """Classify images: uint8 (B, 3, H, W) to logits (B, C).

    Args:
        architecture: See `build_backbone`.
        classes: The names of the C classes.
        weights: See `build_backbone`.
        options: See `build_backbone`.
        preprocessing: How images are prepared. The network itself normalizes them.
        split_digest: SHA-256 of the split.csv of the training data.
        weights_digest: SHA-256 of the backbone before training; None computes it.
        seed: Seed of the head's initial weights.

    Attributes:
        hparams: The arguments that a checkpoint holds: with them and the weights, it is built again.
        backbone: Maps normalized images to features (B, F).
        head: The last layer, from features to logits.
        normalize: Maps uint8 images to normalized ones in float32.
    """

    def __init__(
        self,
        architecture: str,
        classes: Sequence[str],
        weights: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        preprocessing: Preprocessing = _IMAGENET,
        split_digest: str = "",
        weights_digest: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.classes, self.preprocessing = list(classes), preprocessing
        self.normalize = normalize(preprocessing)
        self.backbone, width = build_backbone(architecture, weights, options or {})
        self.backbone.to(memory_format=torch.channels_last)  # twice as fast on a CPU with bf16, faster on GPUs too
        with seeded(seed):  # the head must not depend on earlier draws: the later jobs of a multirun draw no backbone
            self.head = nn.Linear(width, len(classes))
        self.hparams: dict[str, Any] = {
            "architecture": architecture,
            "classes": self.classes,
            "options": options,
            **preprocessing.to_dict(),
            "split_digest": split_digest,
            "weights_digest": weights_digest or state_dict_sha256(self.backbone),
        }
        if package := registering_package(architecture):
            self.hparams["package"] = package

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.head.weight.device

    def has_untrained_backbone(self) -> bool:
        """Return whether the backbone is that of the start of the run."""
        return bool(state_dict_sha256(self.backbone) == self.hparams["weights_digest"])

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the features (B, F) in float32 of normalized images (B, 3, H, W)."""
        features = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        if isinstance(features, tuple):  # in training, Inception adds the outputs of its auxiliary classifiers
            features = features[0]
        return torch.as_tensor(features).float()

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, F) in float32 of images, uint8 (B, 3, H, W)."""
        return self.encode(self.normalize(images.contiguous(memory_format=torch.channels_last)))

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) in float32 of features (B, F)."""
        with torch.autocast(self.device.type, enabled=False):  # the head is small: keep full precision
            return torch.as_tensor(self.head(features))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) in float32 of images, uint8 (B, 3, H, W)."""
        return self.logits(self.features(images))


@torch.inference_mode()
def predict_logits(model: Network, features: Tensor) -> Tensor:
    """Return the logits (N, C), float64 on the CPU, of a model's head for features (N, F)."""
    return model.logits(features.float().to(model.device)).double().cpu()
