"""Replay the pass of a network as a CUDA graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class CudaGraph:
    """The pass of a network over inputs of one shape, launched as a CUDA graph; in training mode, also backward.

    Launching the kernels of a ResNet-152 one by one takes a CPU longer than a modern GPU needs to compute a batch of
    64 images. Kernels and results are the same. See https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs.

    The graph keeps its own memory for activations. It computes with the parameters and buffers where they are: they
    may change, but not move to another device. The gradients of a call are overwritten by the next call. Hooks that
    are added to the modules later do not run.

    Args:
        network: A network on a GPU. The graph is for the mode that it is in, training or evaluation. Its parameters and
            buffers stay as they are.
        inputs: Inputs (B, …) of the shape, type and memory format of all later inputs. Their values do not matter.

    Raises:
        RuntimeError: The pass cannot be captured, for example because it waits for the GPU; the network has hooks; or
            there is not enough memory.
    """

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
            raise RuntimeError("the network has hooks, which a CUDA graph would not call")
        self._shape, self._dtype = inputs.shape, inputs.dtype
        self._modules, self._parameters = [*network.modules()], [*network.parameters()]
        self._mode = self._current_mode()
        # Warming up changes the statistics of BatchNorm, and draws random numbers for dropout.
        saved = [(buffer, buffer.clone()) for buffer in network.buffers()]
        is_mixed = torch.is_autocast_enabled("cuda")
        with (
            torch.random.fork_rng([inputs.device.index]),
            torch.set_grad_enabled(network.training),
            torch.autocast("cuda", enabled=is_mixed, cache_enabled=False),
        ):
            try:
                torch.cuda.make_graphed_callables(network, (inputs,), allow_unused_input=True)
            finally:
                self._forward: Any = vars(network).pop("forward", None)  # which does not look at the shape of its input
                with torch.no_grad():
                    for buffer, value in saved:
                        buffer.copy_(value)

    def fits(self, inputs: Tensor) -> bool:
        """Return whether shape and type, and the mode of each module and parameter, are those of the graph."""
        is_same_kind = inputs.shape == self._shape and inputs.dtype == self._dtype
        return is_same_kind and self._current_mode() == self._mode

    def __call__(self, inputs: Tensor) -> Any:
        """Return what the network returns, for inputs that fit."""
        return self._forward(inputs)

    def _current_mode(self) -> tuple[list[bool], list[bool]]:
        trained = [parameter.requires_grad for parameter in self._parameters]
        return [module.training for module in self._modules], trained


class CudaGraphs:
    """Graphs that replace the pass of a network for the inputs that they fit, until `release`.

    Args:
        network: The network.
        graphs: Its graphs.
    """

    def __init__(self, network: nn.Module, graphs: Sequence[CudaGraph]) -> None:
        self._network, self._graphs, self._eager = network, graphs, network.forward
        network.forward = self._run  # as make_graphed_callables does

    def _run(self, inputs: Tensor) -> Any:
        return next((graph for graph in self._graphs if graph.fits(inputs)), self._eager)(inputs)

    def release(self) -> None:
        """Restore the forward pass of the network, and free the memory of the graphs."""
        vars(self._network).pop("forward", None)
        self._graphs = ()
