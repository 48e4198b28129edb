import pytest
import torch
from torch import Tensor

from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.classifier import ImageClassifier


def model_of(architecture: str) -> ImageClassifier:
    """A frozen model whose BatchNorms are no identities."""
    torch.manual_seed(0)
    model = ImageClassifier(architecture, ["lily", "orchid"])
    model.set_stage("head", epochs=1)
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def photos_of(count: int, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# A plain ResNet, shortcuts by concatenation, no ReLU, no convolution to fold.
@pytest.mark.parametrize("architecture", ["resnet18", "densenet121", "efficientnet_b0", "swin_t"])
def test_the_pass_gives_what_the_backbone_gives(architecture: str):
    model, photos = model_of(architecture), photos_of(3)
    with torch.inference_mode():
        wanted = model.features(photos)
    found = FrozenBackbone(model, "32-true")(photos)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    half = FrozenBackbone(model, "bf16-mixed")(photos).float()
    assert (half - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_the_model_stays_as_it_is():
    model = model_of("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FrozenBackbone(model, "bf16-mixed")(photos_of(2))
    after = model.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_photos_features_are_the_same_to_the_bit_in_any_company(precision: str):
    frozen, photos = FrozenBackbone(model_of("resnet18"), precision), photos_of(19)
    together = torch.cat([frozen(photos[:16]), frozen(photos[16:])])
    apart = torch.cat([frozen(photos[:5]), frozen(photos[5:6]), frozen(photos[6:])])
    assert torch.equal(together, apart)


def test_half_precision_features_take_half_the_room():
    assert FrozenBackbone(model_of("resnet18"), "bf16-mixed")(photos_of(1)).dtype == torch.bfloat16


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision=8-bit: wanted 32-true"):
        FrozenBackbone(model_of("resnet18"), "8-bit")
