"""Probabilities that mean what they say: temperature scaling (Guo et al., ICML 2017, arXiv:1706.04599)."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from flowers.predictions import Predictions

_FOLDS = 5


def temperature(logits: Tensor, labels: Tensor) -> float:
    """What to divide logits (N, C) by so that the cross-entropy loss with labels (N,) is least: 0.05 to 20."""

    def loss(exponent: float) -> float:
        return cross_entropy(logits / np.exp(exponent), labels).item()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def crossfitted(predictions: Predictions) -> Tensor:
    """Calibrated probabilities (N, C), each photo's by a temperature that was fitted to other photos only."""
    calibrated = torch.empty_like(predictions.logits)
    # Dealt out in the order of the paths, mostly class by class, and not by the truth, which a photo shall not see.
    order = sorted(range(len(predictions)), key=lambda item: predictions.paths[item])
    fold = torch.empty(len(predictions), dtype=torch.int64)
    fold[order] = torch.arange(len(predictions)) % _FOLDS
    for number in range(min(_FOLDS, len(predictions))):
        here, rest = fold == number, fold != number
        fitted = temperature(predictions.logits[rest], predictions.labels[rest]) if rest.any() else 1.0
        calibrated[here] = (predictions.logits[here] / fitted).softmax(1)
    return calibrated
