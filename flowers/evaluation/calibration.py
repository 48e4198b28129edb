"""Temperature scaling (Guo et al., ICML 2017, arXiv:1706.04599), reliability and coverage."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

from flowers.runs.predictions import Predictions

CALIBRATION_BINS = 15

_BIN_IMAGES = 20  # images of a bin of the reliability diagram, at least and on average
FEW_IMAGES = CALIBRATION_BINS * _BIN_IMAGES  # with fewer, the reliability diagram has fewer bins


def reliability_bins(probabilities: Tensor, correct: Tensor) -> list[dict[str, float]]:
    """Group images by the probability (N, C) of their predicted class, for a reliability diagram.

    Bins have equal width. If that leaves fewer than 20 images for a bin on average, there are fewer bins, with equally
    many images: the accuracy of a few images says little.

    Returns:
        One row per bin that has images: the mean probability, the share of correct predictions (`correct` is (N,)), and
        the number of images.
    """
    confidence = probabilities.amax(1)
    count = min(CALIBRATION_BINS, max(1, len(confidence) // _BIN_IMAGES))
    if len(confidence) >= FEW_IMAGES:
        bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    else:
        bins = confidence.argsort(stable=True).argsort() * count // len(confidence)
    return [
        {
            "confidence": confidence[bins == index].mean().item(),
            "accuracy": correct[bins == index].double().mean().item(),
            "n": int((bins == index).sum()),
        }
        for index in range(count)
        if (bins == index).any()
    ]


def coverage_curve(probabilities: Tensor, correct: Tensor) -> list[dict[str, float]]:
    """Return the accuracy if only the most confident share of the images is classified.

    Args:
        probabilities: Probabilities (N, C).
        correct: Whether the predictions are correct (N,).

    Returns:
        Rows of coverage (2 % to 100 %), accuracy on that share, and the lowest probability in it.
    """
    confidence, order = probabilities.amax(1).sort(descending=True)
    correct_so_far = correct[order].cumsum(0)
    counts = [max(1, round(len(order) * share / 100)) for share in range(2, 101, 2)]
    return [
        {
            "coverage": n / len(order),
            "accuracy": correct_so_far[n - 1].item() / n,
            "confidence": confidence[n - 1].item(),
        }
        for n in counts
    ]


_FOLDS = 5


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature, from 0.05 to 20, for which logits (N, C) / temperature have the least cross-entropy loss.

    Args:
        logits: Logits (N, C).
        labels: True classes (N,).
    """

    def loss(exponent: float) -> float:
        return cross_entropy(logits / np.exp(exponent), labels).item()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def cross_fitted_probabilities(predictions: Predictions) -> Tensor:
    """Return calibrated probabilities (N, C). The temperature of each image is fitted to the other folds only."""
    calibrated = torch.empty_like(predictions.logits)
    # Folds follow the sorted paths, which mostly go class by class: the true class must not decide the fold.
    order = sorted(range(len(predictions)), key=lambda item: predictions.paths[item])
    folds = torch.empty(len(predictions), dtype=torch.int64)
    folds[order] = torch.arange(len(predictions)) % _FOLDS
    for number in range(min(_FOLDS, len(predictions))):
        inside, outside = folds == number, folds != number
        temperature = (
            fit_temperature(predictions.logits[outside], predictions.labels[outside]) if outside.any() else 1.0
        )
        calibrated[inside] = (predictions.logits[inside] / temperature).softmax(1)
    return calibrated


def choose_temperature(predictions: Predictions) -> float:
    """Return the temperature for these logits, or 1 if calibration makes probabilities worse.

    It makes them worse if the loss grows on images to which the temperature is not fitted, as with few images.
    """
    calibrated = cross_fitted_probabilities(predictions)
    if _loss(calibrated, predictions.labels) >= _loss(predictions.probabilities(), predictions.labels):
        return 1.0
    return fit_temperature(predictions.logits, predictions.labels)


def _loss(probabilities: Tensor, labels: Tensor) -> float:
    return nll_loss(probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log(), labels).item()
