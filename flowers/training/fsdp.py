"""Sharded training (PyTorch FSDP2): each process keeps a part of the weights and optimizer state."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

_UNITS_PER_MODULE = 8  # a module with more than this part of all weights is taken apart further


class FSDP2Strategy(DDPStrategy):
    """As Lightning's DDP, but by PyTorch's FSDP2; Lightning's own "fsdp" is of the first kind and refuses a CPU.

    What a stage trains is sharded for good once it begins; a frozen backbone stays whole in each process. Checkpoints
    are those of any other run, so that it is gone on with or without shards.
    """

    def configure_ddp(self) -> None:
        """Shards what is about to be trained, in place of wrapping it."""
        assert self.lightning_module is not None
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))  # FSDP2 itself would take a GPU that is idle
        for network in self.lightning_module.children():
            if any(weight.requires_grad for weight in network.parameters()):
                shard_module(network, mesh)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Has them step without the fused kernels, of which SGD's knows of no shards."""
        super().setup_optimizers(trainer)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group.update(_unfused(group))

    def on_validation_start(self) -> None:
        """Has all judge by the first one's buffers (BatchNorm's statistics), as DDP does: they are the checkpoint's."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            distributed.broadcast(buffer, 0)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, on the CPU of the first process; of the others, nothing that could be used."""
        return dict(tree_map(self._whole, super().lightning_module_state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's whole state, likewise."""
        return dict(tree_map(self._whole, super().optimizer_state(optimizer)))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives the optimizers their parts of a whole state. Weights are loaded before they are sharded."""
        states = []
        for optimizer, whole in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            parts = {
                number: {name: _shard_like(weights[number], value) for name, value in values.items()}
                for number, values in whole["state"].items()
            }
            states.append({"state": parts, "param_groups": [*map(_unfused, whole["param_groups"])]})
        super().load_optimizer_state_dict({"optimizer_states": states})

    def teardown(self) -> None:
        """Leaves the parts on their devices, where the next stage goes on with them; DDP would fetch the whole."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        for used in (self.cluster_environment, self.precision_plugin, self.accelerator, self.checkpoint_io):
            used.teardown()

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)


def shard_module(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a network in place, the first process's; of its larger modules one at a time is then whole.

    Does nothing the second time.
    """
    if isinstance(network, FSDPModule):
        return
    network.to(memory_format=torch.contiguous_format)  # FSDP2 knows no other
    for tensor in network.state_dict().values():
        distributed.broadcast(tensor, 0)
    limit = sum(weight.numel() for weight in network.parameters()) / _UNITS_PER_MODULE
    for unit in [*_shard_units(network, limit), network]:
        fully_shard(unit, mesh=mesh)


def _shard_units(network: nn.Module, limit: float) -> Iterator[nn.Module]:
    """The largest modules inside that have weights, up to so many, or have nothing inside."""
    for child in network.children():
        count = sum(weight.numel() for weight in child.parameters())
        if count > limit and list(child.children()):
            yield from _shard_units(child, limit)
        elif count:
            yield child


def _unfused(group: dict[str, Any]) -> dict[str, Any]:
    return group | {"fused": False} if "fused" in group else group


def _shard_like(weight: Any, value: Any) -> Any:
    """Of an optimizer's value this process's part, where it is one for each number of a sharded weight."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
