import logging

import pytest
import torch
from torch import Tensor, fx, nn

from flowers.features.mkldnn_fusion import FusedConvReLU, fuse_if_equal

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="needs oneDNN",
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.relu(self.second(self.relu(self.first(inputs))) + inputs)
        return outputs


@pytest.fixture
def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Block().eval())


@torch.inference_mode()
def forward(network: nn.Module) -> Tensor:
    inputs = torch.rand(2, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(network(inputs.contiguous(memory_format=torch.channels_last)))


def is_fused(network: nn.Module) -> bool:
    return any(isinstance(module, FusedConvReLU) for module in network.modules())


@needs_onednn
def test_the_private_operation_of_pytorch_still_fuses(network: fx.GraphModule, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        fused = fuse_if_equal(network, forward, tolerance=1e-5)
    assert is_fused(fused), f"torch {torch.__version__} changed mkldnn._convolution_pointwise: {caplog.text}"
    torch.testing.assert_close(forward(fused), forward(network))


@needs_onednn
@pytest.mark.parametrize(("failure", "message"), [("raise", "RuntimeError: unsupported"), ("differ", "differ by")])
def test_a_network_that_fails_to_fuse_in_forward_stays_unfused(
    failure: str, message: str, network: fx.GraphModule, caplog: pytest.LogCaptureFixture
):
    def failing(candidate: nn.Module) -> Tensor:
        if is_fused(candidate) and failure == "raise":
            raise RuntimeError("unsupported")
        return forward(candidate) + is_fused(candidate)

    with caplog.at_level(logging.WARNING):
        assert fuse_if_equal(network, failing, tolerance=1e-5) is network
    assert message in caplog.text
    assert len(caplog.records) == 1


@needs_onednn
def test_a_network_that_cannot_be_rewritten_stays_unfused(caplog: pytest.LogCaptureFixture):
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.relu(input=inputs)  # by keyword: the node in the graph has no positional argument
            return outputs

    network = fx.symbolic_trace(ByKeyword().eval())
    with caplog.at_level(logging.WARNING):
        assert fuse_if_equal(network, forward, tolerance=1e-5) is network
    assert len(caplog.records) == 1
