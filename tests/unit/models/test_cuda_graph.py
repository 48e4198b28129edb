import pytest
import torch
from torch import Tensor, nn

from flowers.models.cuda_graph import CudaGraph, CudaGraphs
from flowers.models.network import Network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses_of_training(graphed: bool) -> tuple[list[float], list[Tensor]]:
    """Train on batches of 8, 8, 3 and 8 images; return the losses, and the buffers and validation logits at the end."""
    torch.manual_seed(0)
    model = Network("resnet18", ["a", "b"]).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, device="cuda")
    labels = torch.arange(8, device="cuda") % 2
    if graphed:
        pixels = model.normalize(images).contiguous(memory_format=torch.channels_last)
        training = CudaGraph(model.backbone, pixels)
        model.backbone.eval()
        CudaGraphs(model.backbone, [training, CudaGraph(model.backbone, pixels)])
        model.backbone.train()
        assert training.fits(pixels)
        assert not training.fits(pixels[:3])
    losses = []
    for count in (8, 8, 3, 8):
        loss = nn.functional.cross_entropy(model(images[:count]), labels[:count])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.inference_mode():
        return losses, [*model.buffers(), model(images)]


def test_training_with_cuda_graphs_is_training_without():
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        (losses, state), (expected, expected_state) = losses_of_training(True), losses_of_training(False)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-3, atol=1e-3)


def test_cuda_graph_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()).cuda()
    inputs = torch.randn(2, 3, 8, 8, device="cuda")
    before, seed = [buffer.clone() for buffer in network.buffers()], torch.cuda.get_rng_state()
    CudaGraph(network, inputs)
    torch.testing.assert_close([*network.buffers()], before)
    assert torch.equal(torch.cuda.get_rng_state(), seed)
    assert "forward" not in vars(network)


class Waits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        scaled: Tensor = self.layer(inputs) * inputs.sum().item()
        return scaled


def test_network_that_waits_for_the_gpu_is_refused():
    network = Waits().cuda()
    with pytest.raises(RuntimeError):
        CudaGraph(network, torch.randn(2, 4, device="cuda"))
    torch.testing.assert_close(network(torch.ones(1, 4, device="cuda")), network.layer(torch.ones(1, 4).cuda()) * 4)
