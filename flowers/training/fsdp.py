"""Sharded training with PyTorch FSDP2: each process holds a part of the weights and of the optimizer state."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from flowers.training.task import FineTuning

_UNITS_PER_MODULE = 8  # a module with more than an eighth of all weights is split further


class FSDP2Strategy(DDPStrategy):
    """Lightning's DDP strategy with PyTorch FSDP2; Lightning's own "fsdp" is FSDP1 and does not run on a CPU.

    A stage shards the modules that it trains, for the rest of the run; a frozen backbone stays whole in each process.
    Checkpoints equal those of an unsharded run, so a run can be resumed with or without shards.
    """

    def configure_ddp(self) -> None:
        """Shard the modules that have trainable weights."""
        assert self.lightning_module is not None
        # Without a mesh, FSDP2 takes a GPU, even if training runs on the CPU.
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for part in cast(FineTuning, self.lightning_module).network.children():
            if any(weight.requires_grad for weight in part.parameters()):
                shard_module(part, mesh)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Turn off the fused optimizer kernels: the one of SGD does not support shards."""
        super().setup_optimizers(trainer)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group.update(_unfused(group))

    def on_validation_start(self) -> None:
        """Copy the buffers (BatchNorm statistics) of rank 0 to all ranks, as DDP does: the checkpoint holds them."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            distributed.broadcast(buffer, 0)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the full weights on the CPU of rank 0, and empty tensors on the other ranks."""
        return dict(tree_map(self._full_tensor, super().lightning_module_state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the full optimizer state on the CPU of rank 0, and empty tensors on the other ranks."""
        return dict(tree_map(self._full_tensor, super().optimizer_state(optimizer)))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the local shards of a full optimizer state. Weights are loaded before they are sharded."""
        states = []
        for optimizer, full_state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            shards = {
                index: {name: _shard_like(weights[index], value) for name, value in values.items()}
                for index, values in full_state["state"].items()
            }
            states.append({"state": shards, "param_groups": [*map(_unfused, full_state["param_groups"])]})
        super().load_optimizer_state_dict({"optimizer_states": states})

    def teardown(self) -> None:
        """Leave the shards on their devices for the next stage; DDP would move the model to the CPU."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        for plugin in (self.cluster_environment, self.precision_plugin, self.accelerator, self.checkpoint_io):
            plugin.teardown()

    def _full_tensor(self, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()  # all ranks must take part
        return full.cpu() if self.is_global_zero else full.new_empty(0)


def shard_module(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network in place, with the values of rank 0. Does nothing if it is already sharded."""
    if isinstance(network, FSDPModule):
        return
    network.to(memory_format=torch.contiguous_format)  # the only format that FSDP2 supports
    for tensor in network.state_dict().values():
        distributed.broadcast(tensor, 0)
    limit = sum(weight.numel() for weight in network.parameters()) / _UNITS_PER_MODULE
    for unit in [*_shard_units(network, limit), network]:
        fully_shard(unit, mesh=mesh)


def _shard_units(network: nn.Module, limit: float) -> Iterator[nn.Module]:
    """Yield the largest submodules with at most `limit` weights, and larger ones that have no submodules."""
    for child in network.children():
        count = sum(weight.numel() for weight in child.parameters())
        if count > limit and list(child.children()):
            yield from _shard_units(child, limit)
        elif count:
            yield child


def _unfused(group: dict[str, Any]) -> dict[str, Any]:
    return group | {"fused": False} if "fused" in group else group


def _shard_like(weight: Any, value: Any) -> Any:
    """Return the local shard of an optimizer value that has the shape of a sharded weight; else the value itself."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
