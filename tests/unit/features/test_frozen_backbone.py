import logging

import pytest
import torch
from torch import Tensor, nn

from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.network import Network


def model_of(architecture: str) -> Network:
    """A frozen model whose BatchNorms are no identities."""
    torch.manual_seed(0)
    model = Network(architecture, ["lily", "orchid"]).eval()
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def random_images(count: int, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# A plain ResNet, shortcuts by concatenation, no ReLU, no convolution to fold.
@pytest.mark.parametrize("architecture", ["resnet18", "densenet121", "efficientnet_b0", "swin_t"])
def test_frozen_backbone_equals_the_backbone(architecture: str):
    model, images = model_of(architecture), random_images(3)
    with torch.inference_mode():
        expected = model.features(images)
    features = FrozenBackbone(model, "32-true")(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    half = FrozenBackbone(model, "bf16-mixed")(images).float()
    assert (half - expected).abs().max() < 0.03 * expected.abs().max()


def test_frozen_backbone_leaves_the_model_unchanged():
    model = model_of("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FrozenBackbone(model, "bf16-mixed")(random_images(2))
    after = model.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_features_do_not_depend_on_the_batch(precision: str):
    frozen, images = FrozenBackbone(model_of("resnet18"), precision), random_images(19)
    together = torch.cat([frozen(images[:16]), frozen(images[16:])])
    apart = torch.cat([frozen(images[:5]), frozen(images[5:6]), frozen(images[6:])])
    assert torch.equal(together, apart)


def test_features_have_the_precision_of_the_pass():
    assert FrozenBackbone(model_of("resnet18"), "bf16-mixed")(random_images(1)).dtype == torch.bfloat16


def test_precision_dtype_rejects_an_unknown_precision():
    with pytest.raises(ValueError, match="precision=8-bit: expected a Lightning precision"):
        FrozenBackbone(model_of("resnet18"), "8-bit")


def test_a_backbone_that_cannot_be_traced_is_used_as_it_is(caplog: pytest.LogCaptureFixture):
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)  # else there is nothing to fuse

        def forward(self, images: Tensor) -> Tensor:
            means = images.mean((2, 3))
            return means if means.sum() > 0 else -means

    model, images = model_of("resnet18"), random_images(3)
    model.backbone = Branching().eval()
    with caplog.at_level(logging.WARNING):
        frozen = FrozenBackbone(model, "32-true")
    torch.testing.assert_close(frozen(images), model.features(images).abs())
    (record,) = caplog.records
    assert "cannot trace" in record.getMessage()
