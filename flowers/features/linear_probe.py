"""Linear probes: the best linear head for fixed features, found by convex optimization."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

# Of the mean squared feature. From features that need almost no penalty to random ones.
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
    features: Tensor, labels: Tensor, num_classes: int, l2: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimize the mean cross-entropy plus `l2` / 2 times the squared weights, by L-BFGS.

    The penalty is on the weights for features that are scaled to a mean square of 1, so that one `l2` suits backbones
    whose features differ in size. The problem is convex: the result depends on `start` only within the tolerance.

    Args:
        features: (N, F).
        labels: (N,), from 0 to C - 1.
        num_classes: C.
        l2: Above 0.
        start: Where the search starts, such as the probe of the next `l2`; None starts at zero.
    """
    scale = float(features.float().square().mean().sqrt().clamp(min=1e-12))
    inputs = features.float() / scale
    width = inputs.shape[1]
    initial = torch.zeros(num_classes, width + 1)
    if start is not None:
        initial[:, :-1], initial[:, -1] = start.weight.cpu() * scale, start.bias.cpu()

    def objective(flat: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        parameters = torch.from_numpy(flat).float().view(num_classes, width + 1)
        weight, bias = parameters[:, :-1], parameters[:, -1]
        logits = torch.addmm(bias, inputs, weight.T).double()
        loss = functional.cross_entropy(logits, labels) + l2 / 2 * weight.double().square().sum()
        errors = logits.softmax(1)
        errors[torch.arange(len(labels)), labels] -= 1
        errors = (errors / len(labels)).float()
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
    return LinearProbe(parameters[:, :-1] / scale, parameters[:, -1].clone())
