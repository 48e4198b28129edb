"""Several optimizer steps in one batch of Lightning's, whose own work for a step takes longer than a small head's."""

from collections.abc import Sequence
from typing import cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler


def take_steps(model: LightningModule, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Trains `model`, which optimizes manually, a step on each pair of inputs and labels.

    Returns of each photo its step's loss (N,) and its logits (N, C).
    """
    optimizer, schedule = cast(LightningOptimizer, model.optimizers()), cast(LRScheduler, model.lr_schedulers())
    losses, logits = [], []
    for step_inputs, step_labels in zip(inputs, labels, strict=True):
        optimizer.zero_grad()
        logits.append(model(step_inputs))
        losses.append(cross_entropy(logits[-1], step_labels))
        model.manual_backward(losses[-1])
        optimizer.step()
        schedule.step()
    # Lightning takes the block for one step: its loggers count on, and so does a later stage of one step a batch.
    loop = model.trainer.fit_loop.epoch_loop
    loop._batches_that_stepped += len(losses) - 1
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed += len(losses)
    spread = [loss.detach().expand(len(part)) for loss, part in zip(losses, labels, strict=True)]
    return torch.cat(spread), torch.cat(logits).detach()
