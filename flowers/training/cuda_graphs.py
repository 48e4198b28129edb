"""A Lightning callback that trains with CUDA graphs."""

import logging
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from flowers.models.classifier import ImageClassifier
from flowers.models.cuda_graph import CudaGraph

log = logging.getLogger(__name__)


class GraphTraining(Callback):
    """Train and validate the backbone with CUDA graphs in the fine-tune stage, on one GPU.

    The last batch of an epoch, which has fewer images, runs without a graph. So does the whole stage if gradients
    accumulate over batches, on cached activations, or if the graphs cannot be captured, which is logged.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the graphs. No dataloader uses the GPU yet: the thread that pins memory would break the capture."""
        model = cast(ImageClassifier, pl_module)
        if not can_use_graphs(trainer, model):
            return
        batch_size: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        side = model.preprocessing.image_size
        # The weights get their gradients on another stream than the one of the capture.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        try:
            with trainer.precision_plugin.train_step_context():
                model.set_mode()
                sides = sorted({*model.train_sizes} or {side})
                training = [CudaGraph(model.backbone, _blank_images(batch_size, each, model.device)) for each in sides]
                model.backbone.eval()
                model.graphs = [*training, CudaGraph(model.backbone, _blank_images(batch_size, side, model.device))]
        except RuntimeError as error:
            log.warning("training without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
        model.set_mode()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Drop the graphs if another callback begins to accumulate gradients."""
        model = cast(ImageClassifier, pl_module)
        if model.graphs and not can_use_graphs(trainer, model):
            model.graphs = ()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free the memory of the graphs. Lightning then moves the weights to the CPU."""
        cast(ImageClassifier, pl_module).graphs = ()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free the memory of the graphs."""
        cast(ImageClassifier, pl_module).graphs = ()


def _blank_images(batch_size: int, side: int, device: torch.device) -> Tensor:
    images = torch.zeros(batch_size, 3, side, side, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def can_use_graphs(trainer: Trainer, model: ImageClassifier) -> bool:
    """Return whether a stage trains whole images on one GPU, with one backward pass per step."""
    return (
        model.stage == "finetune"
        and model.last_blocks is None
        and isinstance(trainer.strategy, SingleDeviceStrategy)
        and model.device.type == "cuda"
        and trainer.accumulate_grad_batches == 1
    )
