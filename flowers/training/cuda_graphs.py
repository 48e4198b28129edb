"""A Lightning callback that trains with CUDA graphs."""

import logging
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from flowers.models.cuda_graph import CudaGraph, CudaGraphs
from flowers.training.task import FineTuning

log = logging.getLogger(__name__)


class GraphTraining(Callback):
    """Train and validate the backbone with CUDA graphs in the fine-tune stage, on one GPU.

    The last batch of an epoch, which has fewer images, runs without a graph. So does the whole stage if gradients
    accumulate over batches, on cached activations, or if the graphs cannot be captured, which is logged.
    """

    def __init__(self) -> None:
        self._graphs: CudaGraphs | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the graphs. No dataloader uses the GPU yet: the thread that pins memory would break the capture."""
        task = cast(FineTuning, pl_module)
        if not can_use_graphs(trainer, task):
            return
        batch_size: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        backbone, side = task.network.backbone, task.network.preprocessing.image_size
        # The weights get their gradients on another stream than the one of the capture.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        try:
            with trainer.precision_plugin.train_step_context():
                task.set_mode()
                sides = task.stage.backbone_sides(side)
                graphs = [CudaGraph(backbone, _blank_images(batch_size, each, task.device)) for each in sides]
                backbone.eval()
                graphs.append(CudaGraph(backbone, _blank_images(batch_size, side, task.device)))
            self._graphs = CudaGraphs(backbone, graphs)
        except RuntimeError as error:
            log.warning("training without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
        task.set_mode()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Drop the graphs if another callback begins to accumulate gradients."""
        if self._graphs is not None and not can_use_graphs(trainer, cast(FineTuning, pl_module)):
            self._release()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free the memory of the graphs. Lightning then moves the weights to the CPU."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free the memory of the graphs."""
        self._release()

    def _release(self) -> None:
        if self._graphs is not None:
            self._graphs.release()
            self._graphs = None


def _blank_images(batch_size: int, side: int, device: torch.device) -> Tensor:
    images = torch.zeros(batch_size, 3, side, side, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def can_use_graphs(trainer: Trainer, task: FineTuning) -> bool:
    """Return whether a stage trains the backbone on one GPU, with one backward pass per step."""
    return (
        bool(task.stage.backbone_sides(task.network.preprocessing.image_size))
        and isinstance(trainer.strategy, SingleDeviceStrategy)
        and task.device.type == "cuda"
        and trainer.accumulate_grad_batches == 1
    )
