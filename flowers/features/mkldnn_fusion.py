"""Convolution, addition and ReLU as one oneDNN operation on a CPU, which saves passes over memory.

`torch.ops.mkldnn._convolution_pointwise` is what torch.compile emits for such sequences on a CPU, but it is private to
PyTorch. All use of it is in this module. Each fused network is compared with the unfused one before it is used, and
`tests/unit/features/test_mkldnn_fusion.py` fails if a version of PyTorch changes the operation.
"""

import copy
import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

log = logging.getLogger(__name__)


def fuse_if_equal(network: fx.GraphModule, forward: Callable[[nn.Module], Tensor], tolerance: float) -> fx.GraphModule:
    """Fuse a network, unless the fused one fails or computes something else.

    Args:
        network: A traced network in eval mode on a CPU. It stays unchanged; the result shares its modules.
        forward: Runs one small batch through the network that it gets, and returns the output.
        tolerance: The largest difference of two outputs, relative to the largest absolute output.

    Returns:
        The fused network, or `network` itself, with one line in the log if fusing failed.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return network
    try:
        fused = fuse_conv_relu(network)
        if not any(isinstance(module, FusedConvReLU) for module in fused.modules()):
            return network
        expected = forward(network).float()
        error = (forward(fused).float() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        problem = "" if error <= tolerance else f"the features differ by {float(error):.2g} of their maximum"
    except Exception as raised:  # a private operation, or a network of another library, may fail in any way
        problem = f"{type(raised).__name__}: {raised}".splitlines()[0]
    if problem:
        log.warning("the frozen backbone runs slower: PyTorch %s cannot fuse it (%s)", torch.__version__, problem)
        return network
    return fused


def fuse_conv_relu(network: fx.GraphModule) -> fx.GraphModule:
    """Return a network with each convolution joined to the ReLU, or the addition and the ReLU, that follows it."""
    network = fx.GraphModule(network, copy.deepcopy(network.graph))
    modules: dict[str, nn.Module] = dict(network.named_modules())

    def is_convolution(node: Any) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) > 1:
            return False
        convolution = modules[str(node.target)]
        return (
            type(convolution) is nn.Conv2d
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
        )

    def replace(relu: fx.Node, convolution: fx.Node, inputs: tuple[Any, ...]) -> None:
        name = f"{convolution.name}_fused"
        network.add_module(name, FusedConvReLU(modules[str(convolution.target)]))
        with network.graph.inserting_before(relu):
            relu.replace_all_uses_with(network.graph.call_module(name, inputs))

    for node in list(network.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) is not nn.ReLU:
            continue
        previous = node.args[0]
        if is_convolution(previous):
            replace(node, previous, previous.args[:1])
        elif (
            previous.target in (operator.add, operator.iadd)
            and len(previous.users) == 1
            and is_convolution(previous.args[0])
        ):
            convolution, shortcut = previous.args
            replace(node, convolution, (convolution.args[0], shortcut))
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


class FusedConvReLU(nn.Module):
    """Apply a convolution, add `shortcut` if there is one, and apply ReLU."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        assert isinstance(convolution, nn.Conv2d)
        self.convolution = convolution
        shape = convolution.padding, convolution.stride, convolution.dilation
        self.settings = *[[int(size) for size in sizes] for sizes in shape], convolution.groups

    def forward(self, inputs: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return (B, C', H', W') for inputs (B, C, H, W) and a shortcut of the shape of the result."""
        weight, bias = self.convolution.weight, self.convolution.bias
        if torch.is_grad_enabled() and inputs.requires_grad:  # the fused operations have no gradients
            outputs = self.convolution(inputs)
            return torch.relu(outputs if shortcut is None else outputs + shortcut)
        if shortcut is None:
            unary = torch.ops.mkldnn._convolution_pointwise.default
            return torch.as_tensor(unary(inputs, weight, bias, *self.settings, "relu", [], ""))
        if shortcut.shape[2:] == (1, 1):  # PyTorch 2.11 fails to add a 1 x 1 shortcut within the operation
            return torch.relu(self.convolution(inputs) + shortcut)
        binary = torch.ops.mkldnn._convolution_pointwise.binary
        return torch.as_tensor(binary(inputs, shortcut, weight, bias, *self.settings, "add", 1.0, "relu", [], ""))
