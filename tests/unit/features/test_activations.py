import pytest
import torch
from torch import Tensor, nn

from flowers.features.activations import ActivationDataset, split_backbone
from flowers.models.backbones import build_backbone


@pytest.mark.parametrize(
    ("architecture", "depth"), [("resnet18", 1), ("resnet18", 3), ("alexnet", 1), ("convnext_tiny", 1), ("vit_b_16", 2)]
)
def test_the_two_parts_compute_what_the_backbone_computes(architecture: str, depth: int):
    torch.manual_seed(0)
    backbone = build_backbone(architecture, None, {})[0].eval()
    first, last = split_backbone(backbone, depth)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(last(first(images)), backbone(images))


def test_the_last_blocks_are_those_of_the_backbone_with_the_same_gradients():
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", None, {})[0].eval()
    first, last = split_backbone(backbone, 1)
    images, weight = torch.randn(2, 3, 64, 64), backbone.get_parameter("layer4.0.conv1.weight")
    backbone(images).square().sum().backward()
    expected, weight.grad = weight.grad, None
    last(first(images).detach()).square().sum().backward()
    assert expected is not None
    assert torch.equal(torch.as_tensor(weight.grad), expected)
    assert backbone.get_parameter("conv1.weight").grad is not None  # of the first pass
    assert not any(name.startswith("layer3") for name, _ in last.named_parameters())


def test_a_network_that_cannot_be_split_is_one_line():
    class Jumps(nn.Module):
        """Its last block needs the image, too."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.last(self.first(inputs)) + inputs
            return outputs

    class Branches(Jumps):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.as_tensor(self.last(inputs)) if inputs.sum() > 0 else inputs

    with pytest.raises(ValueError, match=r"Jumps cannot be split .*: they use more than one output: expected .*=0"):
        split_backbone(Jumps(), 1)
    with pytest.raises(ValueError, match=r"Branches cannot be split .*: PyTorch cannot trace it \("):
        split_backbone(Branches(), 1)
    with pytest.raises(ValueError, match=r"it has 2 of them: expected a smaller finetune.depth"):
        split_backbone(Jumps(), 2)


def test_activations_are_read_by_view_in_channels_last():
    activations = torch.arange(2 * 3 * 4 * 5 * 6.0).view(2, 3, 4, 5, 6).to(torch.bfloat16)
    batch, labels = ActivationDataset(activations, [0, 1, 2]).__getitems__([(2, 7), (0, 4)])
    assert torch.equal(batch, torch.stack([activations[1, 2], activations[0, 0]]).permute(0, 3, 1, 2))
    assert batch.dtype == torch.bfloat16
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [2, 0]
