"""Training losses: functions of logits (B, C) and labels (B,).

To add a loss, write a function with the arguments of `focal`, and a file `conf/loss/NAME.yaml` that names it. The
validation loss is always the cross-entropy, so that runs with different training losses compare.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

LossFunction = Callable[..., Tensor]  # as `focal`, with its own settings given


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Return the cross-entropy.

    Args:
        logits: (B, C).
        labels: (B,).
        label_smoothing: Share of the target that is spread evenly over all classes, from 0 to below 1
            (arXiv:1512.00567).
        class_weights: A factor for each class, in the order of the class names; None for 1. The mean is over the
            images, so that weights above 1 raise the loss.
        reduction: "mean" over the images, or "none" for the loss of each image (B,).
        ignore_index: The label of images whose loss is 0.

    Raises:
        ValueError: There is not one weight for each class.
    """
    if class_weights is None:
        return functional.cross_entropy(
            logits, labels, label_smoothing=label_smoothing, reduction=reduction, ignore_index=ignore_index
        )
    if len(class_weights) != logits.shape[1]:
        raise ValueError(f"loss.class_weights={list(class_weights)}: expected {logits.shape[1]}, one for each class")
    losses = functional.cross_entropy(
        logits,
        labels,
        weight=logits.new_tensor(class_weights),
        label_smoothing=label_smoothing,
        reduction="none",
        ignore_index=ignore_index,
    )
    return losses.mean() if reduction == "mean" else losses


def focal(
    logits: Tensor, labels: Tensor, gamma: float = 2.0, reduction: str = "mean", ignore_index: int = -100
) -> Tensor:
    """Return the focal loss, (1 - p)^`gamma` times the cross-entropy, where p is the probability of the label.

    It lowers the weight of images that are classified well (Lin et al., ICCV 2017, arXiv:1708.02002).

    Args:
        logits: (B, C).
        labels: (B,).
        gamma: At least 0; 0 is the cross-entropy.
        reduction: "mean" over the images, or "none" for the loss of each image (B,).
        ignore_index: The label of images whose loss is 0.
    """
    losses = functional.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_index)
    losses = (1 - torch.exp(-losses)).clamp(min=0) ** gamma * losses
    return losses.mean() if reduction == "mean" else losses
