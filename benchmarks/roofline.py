"""The peak rates of the hardware, and the operations of a network."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from flowers.runtime.timing import throughput


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Return the highest FLOP/s of several matrix products; a multiply-add counts as two."""
    small = [(1024, 1024, 1024), (2048, 2048, 2048), (12544, 1152, 256)]  # the last one is from a ResNet
    shapes = small if device.type == "cpu" else [(size, size, size) for size in (4096, 8192, 16384)]
    return max(_matmul_rate(shape, device, dtype, seconds / len(shapes)) for shape in shapes)


def _matmul_rate(shape: Sequence[int], device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    m, k, n = shape
    left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)

    def work() -> int:
        for _ in range(4):  # keeps a GPU busy between two looks at the clock
            torch.mm(left, right.T, out=out)
        return 4 * 2 * m * k * n

    work()
    return throughput(work, seconds, device)


def copy_bandwidth(seconds: float) -> float:
    """Return the bytes per second that one process copies in memory."""
    source = torch.ones(2**26, dtype=torch.uint8)  # 64 MiB: larger than the caches
    target = torch.empty_like(source).fill_(0)

    def work() -> int:
        target.copy_(source)
        return source.numel()

    return throughput(work, seconds, torch.device("cpu"))


def flops_per_image(network: nn.Module, size: int, training: bool) -> float:
    """Return the FLOPs of one image through a network.

    Args:
        network: The network.
        size: Side of the image in pixels.
        training: Whether to count the backward pass too.
    """
    parameter = next(network.parameters())
    images = torch.zeros(2, 3, size, size, device=parameter.device, dtype=parameter.dtype)  # BatchNorm needs two
    network.train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = network(images)
        if training:
            torch.autograd.backward(cross_entropy(logits, torch.zeros(2, dtype=torch.long, device=parameter.device)))
    network.zero_grad(set_to_none=True)
    return float(counter.get_total_flops() / 2)
