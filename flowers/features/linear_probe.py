"""Linear probes: the best linear head for fixed features, found by convex optimization."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from flowers.runtime.hardware import available_cores

# Penalties for features that are scaled to a mean square of 1. Random features need the strongest.
L2_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class LinearProbe(NamedTuple):
    """A linear head: logits = features @ weight.T + bias.

    Attributes:
        weight: (C, F).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (N, C) of features (N, F)."""
        return features.float() @ self.weight.T + self.bias


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float,
    start: LinearProbe | None = None,
    class_weights: Tensor | None = None,
) -> LinearProbe:
    """Minimize the mean cross-entropy, weighted by class if asked, plus `l2` / 2 times the squared weights, by L-BFGS.

    The penalty is on the weights for features that are scaled to a mean square of 1, so that one `l2` suits backbones
    whose features differ in size. The problem is convex: the result depends on `start` only within the tolerance.

    Args:
        features: (N, F).
        labels: (N,), from 0 to C - 1.
        num_classes: C.
        l2: Above 0.
        start: Where the search starts, such as the probe of the next `l2`; None starts at zero.
        class_weights: Weight (C,) of an image of each class, of any scale; None for 1.
    """
    scale = float(features.float().square().mean().sqrt().clamp(min=1e-12))
    inputs = features.float() / scale
    # The bias has no penalty, so centered inputs have the same optimum. The search needs a third of the steps: 459
    # against 1,622 over L2_GRID on the features of a pretrained ResNet-18 (2,640 images).
    center = inputs.mean(0)
    inputs = inputs - center
    width = inputs.shape[1]
    initial = torch.zeros(num_classes, width + 1)
    if start is not None:
        initial[:, :-1], initial[:, -1] = start.weight.cpu() * scale, start.bias.cpu()
        initial[:, -1] += initial[:, :-1] @ center
    weights = None if class_weights is None else class_weights.double()
    sizes = len(labels) if weights is None else (weights[labels].sum() / weights[labels])[:, None]

    def objective(flat: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        parameters = torch.from_numpy(flat).float().view(num_classes, width + 1)
        weight, bias = parameters[:, :-1], parameters[:, -1]
        logits = torch.addmm(bias, inputs, weight.T).double()
        loss = functional.cross_entropy(logits, labels, weights) + l2 / 2 * weight.double().square().sum()
        errors = logits.softmax(1)
        errors[torch.arange(len(labels)), labels] -= 1
        errors = (errors / sizes).float()
        gradient = torch.cat([errors.T @ inputs + l2 * weight, errors.sum(0)[:, None]], 1)
        return float(loss), gradient.double().flatten().numpy()

    found = minimize(
        objective,
        initial.double().flatten().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 300, "gtol": 1e-5},
    )
    parameters = torch.from_numpy(np.asarray(found.x)).float().view(num_classes, width + 1)
    weight, bias = parameters[:, :-1], parameters[:, -1]
    return LinearProbe(weight / scale, bias - weight @ center)


def choose_l2(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    seed: int = 0,
    folds: int = 5,
    class_weights: Tensor | None = None,
) -> float:
    """Return the value of `L2_GRID` with the best out-of-fold log loss; see `out_of_fold_logits`.

    Args:
        features: (N, F), N at least 2.
        labels: (N,), from 0 to C - 1.
        num_classes: C.
        seed: Seed of the folds.
        folds: Number of folds, at least 2; with fewer images, one image is a fold.
        class_weights: See `fit_linear_probe`; the loss that is compared has the same weights.
    """
    fold_of = stratified_folds(labels, min(folds, len(labels)), seed)
    logits = out_of_fold_logits(features, labels, num_classes, fold_of, class_weights)
    return min(logits, key=lambda l2: float(functional.cross_entropy(logits[l2], labels, class_weights)))


def out_of_fold_logits(
    features: Tensor, labels: Tensor, num_classes: int, fold_of: Tensor, class_weights: Tensor | None = None
) -> dict[float, Tensor]:
    """Return the logits (N, C) of each image, by probes that are trained on the images of other folds.

    Args:
        features: (N, F).
        labels: (N,), from 0 to C - 1.
        num_classes: C.
        fold_of: The fold (N,) of each image; at least two folds.
        class_weights: See `fit_linear_probe`; the loss that is compared has the same weights.

    Returns:
        The logits by the penalty, from the strongest of L2_GRID on. The first penalty whose log loss is worse than that
        of the one before is the last: weaker ones take most of the time, and overfit more.
    """
    folds = sorted({*fold_of.tolist()})
    probes: dict[int, LinearProbe] = {}  # a strong penalty is fast to fit, and starts the next one
    found: dict[float, Tensor] = {}
    best = float("inf")

    def fit_fold(fold: int, l2: float) -> None:
        is_train = fold_of != fold
        probes[fold] = fit_linear_probe(
            features[is_train], labels[is_train], num_classes, l2, probes.get(fold), class_weights
        )
        found[l2][~is_train] = probes[fold].logits(features[~is_train])

    # One fold per core: the operations are too small for several threads each, which would wait for each other.
    with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for l2 in reversed(L2_GRID):
            found[l2] = torch.empty(len(labels), num_classes)
            deque(pool.map(fit_fold, folds, repeat(l2)), maxlen=0)
            loss = float(functional.cross_entropy(found[l2], labels, class_weights))
            if loss > best:
                break
            best = loss
    return found


def cross_validated_logits(
    features: Tensor, labels: Tensor, num_classes: int, fold_of: Tensor
) -> tuple[Tensor, list[float]]:
    """Return the logits of each image by a probe that is trained on the images of the other folds.

    The penalty of a fold is the one with the best log loss on the images of the other folds.

    Args:
        features: (N, F).
        labels: (N,), from 0 to C - 1.
        num_classes: C.
        fold_of: The fold (N,) of each image; at least two folds.

    Returns:
        The logits (N, C), and the penalty of each fold.
    """
    logits = out_of_fold_logits(features, labels, num_classes, fold_of)
    losses = {l2: functional.cross_entropy(each, labels, reduction="none") for l2, each in logits.items()}
    chosen, penalties = torch.empty(len(labels), num_classes), []
    for fold in sorted({*fold_of.tolist()}):
        is_fold = fold_of == fold
        l2 = min(losses, key=lambda l2: float(losses[l2][~is_fold].mean()))
        chosen[is_fold] = logits[l2][is_fold]
        penalties.append(l2)
    return chosen, penalties


def principal_components(features: Tensor, count: int) -> Tensor:
    """Reduce features (N, F) to their first principal components (N, K).

    Distances and linear probes stay nearly the same, and a probe takes a fraction of the time. K is less than `count`
    if N or F is.

    Args:
        features: (N, F), of any floating-point type.
        count: The largest K.
    """
    centered = features.float() - features.float().mean(0)
    if len(centered) < centered.shape[1]:  # the smaller matrix of products has the same coordinates
        variances, vectors = torch.linalg.eigh(centered @ centered.T)
        coordinates: Tensor = vectors * variances.clamp(min=0).sqrt()
    else:
        coordinates = centered @ torch.linalg.eigh(centered.T @ centered).eigenvectors
    return coordinates[:, -count:].flip(1)  # the eigenvalues are in ascending order


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return a fold (N,), from 0 to `folds` - 1, for each image: each class is spread evenly over the folds."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    fold_of = torch.empty_like(labels)
    fold_of[by_class] = torch.arange(len(labels)) % folds
    return fold_of
