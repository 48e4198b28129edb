"""The frozen backbone as a pure, fast function from images to features."""

import copy
import logging

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from flowers.features.mkldnn_fusion import fuse_if_equal
from flowers.features.tta import mean_over_views
from flowers.models.network import Network

log = logging.getLogger(__name__)

# Raise it with every change of this module, of mkldnn_fusion, or of `Network.normalize` that changes features:
# cached features are then computed again.
PASS_VERSION = 1

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}
_FUSABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU)  # into the layer before them
_CHECK_SIZE = 96  # pixels; Inception needs at least 75


def precision_dtype(precision: str) -> torch.dtype:
    """Return the type that a Lightning precision computes in, such as bfloat16 for "bf16-mixed".

    Raises:
        ValueError: Lightning has no such precision.
    """
    name = str(precision).partition("-")[0]
    if name not in DTYPES:
        raise ValueError(f"precision={precision}: expected a Lightning precision such as 32-true, bf16-mixed, 16-mixed")
    return DTYPES[name]


def fuse_conv_bn(backbone: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode, with each BatchNorm folded into the layer before it where possible.

    A network that cannot be traced or fused comes back as a plain copy, with one line in the log. So does a network in
    which there is nothing to fuse, such as a Vision Transformer.
    """
    if not any(isinstance(module, _FUSABLE) for module in backbone.modules()):
        return copy.deepcopy(backbone)
    try:
        return _fuse_traced(fx.symbolic_trace(copy.deepcopy(backbone)))
    except Exception as error:  # tracing runs the code of the network, which may raise anything
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("the frozen backbone runs slower: PyTorch cannot trace it (%s)", problem)
        return copy.deepcopy(backbone)


def _fuse_traced(network: fx.GraphModule) -> fx.GraphModule:
    calls = [node.target for node in network.graph.nodes if node.op == "call_module"]
    for node in list(network.graph.nodes):
        previous = node.args[0] if node.args else None
        if not isinstance(previous, fx.Node) or {node.op, previous.op} != {"call_module"} or len(previous.users) > 1:
            continue
        layer, norm = network.get_submodule(str(previous.target)), network.get_submodule(node.target)
        if calls.count(previous.target) > 1 or not getattr(norm, "track_running_stats", False):
            continue
        fused: nn.Module
        if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            fused = fuse_conv_bn_eval(layer, norm)
        elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        network.set_submodule(str(previous.target), fused)
        node.replace_all_uses_with(previous)
        network.graph.erase_node(node)
    return fx.GraphModule(network, network.graph)  # without the modules that the graph no longer uses


class FrozenBackbone:
    """A function from uint8 images (B, 3, H, W) to features (B, F), with an optimized copy of a model's backbone.

    The copy has BatchNorm folded into the convolutions and weights in the precision of the pass. On a CPU, oneDNN
    computes a convolution, the addition of a shortcut and ReLU as one operation. The model itself stays unchanged.
    Features have the type that the pass computes in, so storing them loses nothing.

    Args:
        model: The model whose backbone is copied; the copy stays on the same device.
        precision: A Lightning precision, such as "bf16-mixed".
        tta: See `tta_views`; the features are the mean over the views.
        network: Takes the place of the backbone, such as its first blocks.

    Attributes:
        network: The optimized copy.
        batch_size: The size of the batches that it computes.
    """

    def __init__(self, model: Network, precision: str, tta: str = "none", network: nn.Module | None = None) -> None:
        network = model.backbone if network is None else network
        assert not network.training, "a backbone in training mode is not a pure function"
        self.tta = tta
        self.device, self.dtype = model.device, precision_dtype(precision)
        # The fastest batch size from 2 to 32 on 2 cores with AMX: the activations stay in the CPU caches.
        self.batch_size = 16 if self.device.type == "cpu" else 256
        self._normalize = model.normalize
        self.network = fuse_conv_bn(network)
        for module in self.network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):  # autocast handles the other layers
                module.to(self.dtype)
        if self.dtype == torch.float64:
            self.network.double()
        self.network.to(memory_format=torch.channels_last).requires_grad_(False)
        if self.device.type == "cpu" and isinstance(self.network, fx.GraphModule):
            pixels = torch.arange(3 * _CHECK_SIZE**2).mul(2654435761).remainder(251).to(torch.uint8)  # like noise
            images = pixels.view(1, 3, _CHECK_SIZE, _CHECK_SIZE)
            # The tolerances are not measured: they only separate rounding from a wrong result, which is far off.
            with torch.inference_mode():
                self.network = fuse_if_equal(
                    self.network,
                    lambda network: self._run(network, images),
                    tolerance=0.1 if self.dtype.itemsize == 2 else 1e-3,
                )

    def __call__(self, images: Tensor) -> Tensor:
        """Compute features (B, F) of uint8 images (B, 3, H, W).

        Short batches are padded to `batch_size`, so that the features of an image do not depend on its batch, to the
        bit.
        """
        count = len(images)
        if count < self.batch_size:
            images = torch.cat([images, images[-1:].expand(self.batch_size - count, -1, -1, -1)])
        with torch.inference_mode():
            return mean_over_views(self.forward, images, self.tta)[:count]

    def forward(self, images: Tensor) -> Tensor:
        """Compute features of the images as they are, in the gradient mode of the caller.

        There is neither padding nor test-time augmentation, and a layer may ask for gradients.
        """
        return self._run(self.network, images)

    def _run(self, network: nn.Module, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        half = self.dtype.itemsize == 2
        with torch.autocast(self.device.type, dtype=self.dtype if half else None, enabled=half):
            return torch.as_tensor(network(self._normalize(images).to(self.dtype)))
