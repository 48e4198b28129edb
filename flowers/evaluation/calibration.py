"""Temperature scaling (Guo et al., ICML 2017, arXiv:1706.04599), reliability and coverage."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from flowers.evaluation.predictions import Predictions

CALIBRATION_BINS = 15


def reliability_bins(probabilities: Tensor, correct: Tensor) -> list[dict[str, float]]:
    """Photos by the probability (N, C) of their answer, in bins of equal width: mean, share correct (N,), number."""
    confidence = probabilities.amax(1)
    place = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    return [
        {
            "confidence": confidence[place == number].mean().item(),
            "accuracy": correct[place == number].double().mean().item(),
            "n": int((place == number).sum()),
        }
        for number in range(CALIBRATION_BINS)
        if (place == number).any()
    ]


def coverage_curve(predictions: Predictions) -> list[dict[str, float]]:
    """Answering the surest share of the photos and "don't know" for the rest: the accuracy of the answers, and from
    which probability on they are given.
    """
    confidence, order = cross_fitted_probabilities(predictions).amax(1).sort(descending=True)
    right = predictions.correct[order].cumsum(0)
    answered = [max(1, round(len(order) * share / 100)) for share in range(2, 101, 2)]
    return [
        {
            "coverage": n / len(order),
            "accuracy": right[n - 1].item() / n,
            "confidence": confidence[n - 1].item(),
        }
        for n in answered
    ]


_FOLDS = 5


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """What to divide logits (N, C) by so that the cross-entropy loss with labels (N,) is least: 0.05 to 20."""

    def loss(exponent: float) -> float:
        return cross_entropy(logits / np.exp(exponent), labels).item()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def cross_fitted_probabilities(predictions: Predictions) -> Tensor:
    """Calibrated probabilities (N, C), each photo's by a temperature that was fitted to other photos only."""
    calibrated = torch.empty_like(predictions.logits)
    # Dealt out in the order of the paths, mostly class by class, and not by the truth, which a photo shall not see.
    order = sorted(range(len(predictions)), key=lambda item: predictions.paths[item])
    fold = torch.empty(len(predictions), dtype=torch.int64)
    fold[order] = torch.arange(len(predictions)) % _FOLDS
    for number in range(min(_FOLDS, len(predictions))):
        here, rest = fold == number, fold != number
        fitted = fit_temperature(predictions.logits[rest], predictions.labels[rest]) if rest.any() else 1.0
        calibrated[here] = (predictions.logits[here] / fitted).softmax(1)
    return calibrated
