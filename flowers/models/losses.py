"""Training losses: functions of logits (B, C) and targets, which are labels (B,) or probabilities (B, C).

Mixed images (`flowers.models.mixing`) have probabilities. To add a loss, write a function with the arguments of
`focal`, and a file `conf/loss/NAME.yaml` that names it. The validation loss is always the cross-entropy, so that runs
with different training losses compare.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional

LossFunction = Callable[..., Tensor]  # as `focal`, with its own settings given


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross-entropy.

    Args:
        logits: (B, C).
        targets: Labels (B,) or probabilities (B, C).
        label_smoothing: Share of the target that is spread evenly over all classes, from 0 to below 1
            (arXiv:1512.00567).
        class_weights: A factor for each class, in the order of the class names; None for 1. The mean is over the
            images, so that weights above 1 raise the loss.
        reduction: "mean" over the images, or "none" for the loss of each image (B,).

    Raises:
        ValueError: There is not one weight for each class.
    """
    if class_weights is None:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction=reduction)
    if len(class_weights) != logits.shape[1]:
        raise ValueError(f"loss.class_weights={list(class_weights)}: expected {logits.shape[1]}, one for each class")
    weight = logits.new_tensor(class_weights)
    losses = functional.cross_entropy(logits, targets, weight=weight, label_smoothing=label_smoothing, reduction="none")
    return losses.mean() if reduction == "mean" else losses


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0, reduction: str = "mean") -> Tensor:
    """Return the focal loss, (1 - p)^`gamma` times the cross-entropy, where p is the probability of the label.

    It lowers the weight of images that are classified well (Lin et al., ICCV 2017, arXiv:1708.02002). With
    probabilities as targets, it is the mean over the classes with these weights.

    Args:
        logits: (B, C).
        targets: Labels (B,) or probabilities (B, C).
        gamma: At least 0; 0 is the cross-entropy.
        reduction: "mean" over the images, or "none" for the loss of each image (B,).
    """
    weights = functional.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
    log_probabilities = logits.log_softmax(1)
    factors = (1 - log_probabilities.exp()).clamp(min=0) ** gamma
    losses = -(weights * factors * log_probabilities).sum(1)
    return losses.mean() if reduction == "mean" else losses


def class_weighted(
    logits: Tensor, targets: Tensor, loss: LossFunction, class_weights: Tensor, reduction: str = "mean"
) -> Tensor:
    """Return a loss with the loss of each image multiplied by the weight of its class.

    In the mean over an epoch, this is the loss on equally many images of each class. The smoothing of a label has the
    weight of the label: with the `class_weights` of `cross_entropy`, each class has its own share of the smoothing.
    The weight of a mixed image is the mixture of the weights.

    Args:
        logits: (B, C).
        targets: Labels (B,) or probabilities (B, C).
        loss: The loss without weights.
        class_weights: (C,), with mean 1 over the training images.
        reduction: "mean" over the images, or "none" for the loss of each image (B,).
    """
    weights = class_weights.to(logits.device)
    # Not `targets @ weights`, which autocast would round to bf16.
    weights = weights[targets] if targets.ndim == 1 else (targets * weights).sum(1)
    losses = loss(logits, targets, reduction="none") * weights
    return losses.mean() if reduction == "mean" else losses
