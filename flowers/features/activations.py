"""Activations between the frozen and the trained blocks of a backbone, computed once for several epochs.

The frozen blocks of `finetune.depth` are a pure function of an augmented image, as the whole backbone is in the head
stage. An epoch then costs only the trained blocks.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import BatchSampler, DataLoader

from flowers.data.datamodule import ImageDataModule, batches_done
from flowers.data.dataset import ImageDataset
from flowers.data.samplers import ResumableDataLoader
from flowers.features.datamodule import FeatureDataModule, FeatureDataset, keep_batch
from flowers.features.extractor import UNCACHED, FeatureExtractor
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.network import Network
from flowers.models.parameter_groups import backbone_blocks
from flowers.runtime.distributed import rank_and_world_size
from flowers.runtime.hardware import available_memory

_MEMORY_SHARE = 0.5  # of the free memory, for all activations


def split_backbone(backbone: nn.Module, depth: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return the blocks of a backbone before the last `depth` ones, and these. Both use the modules of the backbone.

    Raises:
        ValueError: There is no block before them, or the network cannot be split there.
    """
    blocks = backbone_blocks(backbone)
    problem = f"finetune.cached_views: {type(backbone).__name__} cannot be split before its last {depth} blocks"
    if depth >= len(blocks):
        raise ValueError(f"{problem}: it has {len(blocks)} of them: expected a smaller finetune.depth")
    try:
        graph = _BlockTracer(blocks).trace(backbone)
    except Exception as error:  # tracing runs the code of the network, which may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{problem}: PyTorch cannot trace it ({reason}): expected finetune.cached_views=0") from error
    names = {id(module): name for name, module in backbone.named_modules()}
    start = names[id(blocks[-depth][0])]
    cut = next((node.args[0] for node in graph.nodes if node.op == "call_module" and node.target == start), None)
    if not isinstance(cut, fx.Node):
        raise ValueError(f"{problem}: expected finetune.cached_views=0")
    try:
        return _before(backbone, graph, cut), _after(backbone, graph, cut)
    except KeyError as error:  # they use what the first blocks compute in another way, too
        raise ValueError(f"{problem}: they use more than one output: expected finetune.cached_views=0") from error


class _BlockTracer(fx.Tracer):
    """Trace a network with each of its blocks as one call."""

    def __init__(self, blocks: list[list[nn.Module]]) -> None:
        super().__init__()
        self.blocks = {id(module) for block in blocks for module in block}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.blocks or super().is_leaf_module(m, module_qualified_name)


def _before(backbone: nn.Module, graph: fx.Graph, cut: fx.Node) -> fx.GraphModule:
    before = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = before.node_copy(node, copies.__getitem__)
        if node is cut:
            break
    before.output(copies[cut])
    return _without_unused(fx.GraphModule(backbone, before))


def _after(backbone: nn.Module, graph: fx.Graph, cut: fx.Node) -> fx.GraphModule:
    after = fx.Graph()
    copies = {cut: after.placeholder("activations")}
    passed = False
    for node in graph.nodes:
        if passed or node.op == "get_attr":
            copies[node] = after.node_copy(node, copies.__getitem__)
        passed |= node is cut
    return _without_unused(fx.GraphModule(backbone, after))


def _without_unused(network: fx.GraphModule) -> fx.GraphModule:
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


class ActivationDataModule(FeatureDataModule):
    """Load batches of activations (B, …), in the precision of the run, and labels (B,) in int64.

    Args:
        data: The images.
        model: The classifier, in the fine-tune stage.
        views: Cached augmented views of each training image, of which each epoch draws one.
        first_blocks: The frozen blocks; see `split_backbone`.
    """

    def __init__(self, data: ImageDataModule, model: Network, views: int, first_blocks: fx.GraphModule) -> None:
        super().__init__(data, model, views)
        self.first_blocks = first_blocks.eval()

    def train_dataloader(self) -> DataLoader[Any]:
        """Load the activations of the training images, shuffled; the device of the model computes them.

        Raises:
            ValueError: They take more than half of the free memory.
        """
        dataset = self.data.dataset("train", augmented=True, cache=True)
        self._check_memory(len(dataset))
        first = self._extract(dataset, "train", 0)
        activations = first.new_empty(self.views, *first.shape)
        activations[0] = first
        for view in range(1, self.views):
            activations[view] = self._extract(dataset, "train", view)
        batch_size = self.data.per_rank_batch_size(rank_and_world_size()[1])
        batches: Any = BatchSampler(self.data.train_sampler(dataset.labels), batch_size, drop_last=False)  # type: ignore[arg-type]
        return ResumableDataLoader(
            ActivationDataset(activations, dataset.labels),
            batches,
            lambda: batches_done(self),
            collate_fn=keep_batch,
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Load the activations of the validation images, in the order of split.csv."""
        dataset = self.data.dataset("val", cache=True)
        activations = self._extract(dataset, "val")[None]
        return DataLoader(
            ActivationDataset(activations, dataset.labels),
            self.data.batch_size,
            collate_fn=keep_batch,
            generator=torch.Generator(),
        )

    def _check_memory(self, count: int) -> None:
        assert self.trainer is not None
        side = self.model.preprocessing.image_size
        frozen = FrozenBackbone(self.model, str(self.trainer.precision), network=self.first_blocks)
        one = frozen(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        size, free = self.views * count * one.nbytes, available_memory()
        if size > _MEMORY_SHARE * free > 0:
            raise ValueError(
                f"finetune.cached_views={self.views}: {size / 2**30:.1f} GiB of activations, more than half of the "
                f"{free / 2**30:.1f} GiB of free memory: expected fewer views, a smaller finetune.depth, smaller "
                "images, or 0"
            )

    def _extract(self, dataset: ImageDataset, split: str, view: int | None = None) -> Tensor:
        """Return activations (N, …) on the CPU; those of a CNN as (N, H, W, C)."""
        assert self.trainer is not None, "the precision is that of the Trainer"
        precision = str(self.trainer.precision)
        extractor = FeatureExtractor(self.data, self.model, precision, UNCACHED, network=self.first_blocks)
        name = f"{split}, first blocks" if view is None else f"{split}, first blocks, view {view + 1} of {self.views}"
        activations = extractor.extract(dataset, name, view)
        return activations.permute(0, 2, 3, 1).contiguous() if activations.ndim == 4 else activations


class ActivationDataset(FeatureDataset):
    """Activations (V, N, …) and labels (N,), read a batch at a time as those of `FeatureDataset`.

    Those of a CNN are stored as (V, N, H, W, C), and read as (B, C, H, W) in the memory format channels_last.
    """

    def __getitems__(self, keys: Any) -> tuple[Tensor, Tensor]:
        activations, labels = self.pick(keys)
        return (activations.permute(0, 3, 1, 2) if activations.ndim == 4 else activations), labels
