"""A frozen backbone as a pure function, as fast as the hardware computes it."""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from flowers.models.classifier import ImageClassifier

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


def precision_dtype(precision: str) -> torch.dtype:
    """What a precision of Lightning computes in: bfloat16 for "bf16-mixed". Raises ValueError for an unknown one."""
    name = str(precision).partition("-")[0]
    if name not in DTYPES:
        raise ValueError(f"precision={precision}: wanted 32-true, bf16-mixed, 16-mixed or another one of Lightning's")
    return DTYPES[name]


class FrozenBackbone:
    """Features (B, F) of uint8 photos (B, 3, H, W), by a copy of a model's backbone made for that alone.

    In the copy, BatchNorm is folded into the convolutions, weights have the precision that they are used in, and on a
    CPU a convolution, the addition of a shortcut and ReLU are one operation of oneDNN, which saves the memory's time.
    The model itself stays as it is. Features have the type that the pass computes in: to keep them loses nothing.

    Args:
        model: whose backbone is used, on the device where it is.
        precision: a name of Lightning's, such as "bf16-mixed".
    """

    def __init__(self, model: ImageClassifier, precision: str) -> None:
        assert not model.backbone.training, "a backbone in training mode is not a pure function"
        self.device, self.dtype = model.device, precision_dtype(precision)
        # The fastest on 2 cores with AMX (of 2 to 32: what a layer hands to the next stays in the caches).
        self.batch_size = 16 if self.device.type == "cpu" else 256
        self._normalise = model.normalise
        self._network = fuse_conv_bn(model.backbone)
        if (
            self.device.type == "cpu"
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
            and isinstance(self._network, fx.GraphModule)
        ):
            self._network = _fuse_conv_relu(self._network)
        for module in self._network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):  # the rest is left to autocast
                module.to(self.dtype)
        if self.dtype == torch.float64:
            self._network.double()
        self._network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, photos: Tensor) -> Tensor:
        """Fewer photos than `batch_size` are filled up to it: one shape, so that a photo's features are the same to
        the bit in whatever company.
        """
        count = len(photos)
        if count < self.batch_size:
            photos = torch.cat([photos, photos[-1:].expand(self.batch_size - count, -1, -1, -1)])
        photos = photos.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        half = self.dtype.itemsize == 2
        with torch.autocast(self.device.type, dtype=self.dtype if half else None, enabled=half):
            features = self._network(self._normalise(photos).to(self.dtype))
        return torch.as_tensor(features)[:count]


def fuse_conv_bn(backbone: nn.Module) -> nn.Module:
    """A copy of `backbone`, BatchNorm folded into the convolutions before it; unchanged where it cannot be traced."""
    try:
        return fuse(backbone)
    except fx.proxy.TraceError:
        return copy.deepcopy(backbone)


def _fuse_conv_relu(network: fx.GraphModule) -> fx.GraphModule:
    """`network`, each convolution joined with the ReLU after it, or with the addition and the ReLU after it."""
    modules: dict[str, nn.Module] = dict(network.named_modules())

    def is_convolution(node: Any) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) > 1:
            return False
        convolution = modules[str(node.target)]
        return type(convolution) is nn.Conv2d and convolution.padding_mode == "zeros" and convolution.padding != "same"

    for node in list(network.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) is not nn.ReLU:
            continue
        before = node.args[0]
        if is_convolution(before):
            _replace_relu(network, node, before, modules[before.target], before.args[:1])
        elif (
            before.target in (operator.add, operator.iadd) and len(before.users) == 1 and is_convolution(before.args[0])
        ):
            convolution, shortcut = before.args
            _replace_relu(network, node, convolution, modules[convolution.target], (convolution.args[0], shortcut))
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


def _replace_relu(network: fx.GraphModule, relu: fx.Node, old: fx.Node, convolution: nn.Module, inputs: Any) -> None:
    name = f"{old.name}_joined"
    assert isinstance(convolution, nn.Conv2d)
    network.add_module(name, _FusedConvReLU(convolution))
    with network.graph.inserting_before(relu):
        relu.replace_all_uses_with(network.graph.call_module(name, inputs))


class _FusedConvReLU(nn.Module):
    """A convolution of `inputs`, to which `shortcut` is added where there is one, and ReLU."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        shape = convolution.padding, convolution.stride, convolution.dilation
        self.settings = *[[int(number) for number in numbers] for numbers in shape], convolution.groups

    def forward(self, inputs: Tensor, shortcut: Tensor | None = None) -> Tensor:
        weight, bias = self.convolution.weight, self.convolution.bias
        # The operations that torch.compile puts in place of such sequences on a CPU.
        if shortcut is None:
            joined = torch.ops.mkldnn._convolution_pointwise.default
            return torch.as_tensor(joined(inputs, weight, bias, *self.settings, "relu", [], ""))
        if shortcut.shape[2:] == (1, 1):  # PyTorch 2.11 fails to add so small a one within the convolution
            return torch.relu(self.convolution(inputs) + shortcut)
        added = torch.ops.mkldnn._convolution_pointwise.binary
        return torch.as_tensor(added(inputs, shortcut, weight, bias, *self.settings, "add", 1.0, "relu", [], ""))
