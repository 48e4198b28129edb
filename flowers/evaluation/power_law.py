"""Learning curves: the power law of accuracy against the number of training photos, with its uncertainty."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from flowers.evaluation.statistics import wilson_bounds
from flowers.runtime.files import read_json
from flowers.settings.schema.run_files import LearningCurve
from flowers.settings.validation import check_file

CURVE_FILE = "learning_curve.json"  # in a run folder

_STEEPEST = 2.0  # largest exponent; those of published learning curves are below 1 (arXiv:1712.00409)
_ROUNDS = 1000  # of the bootstrap


class PowerLaw(NamedTuple):
    """error = floor + scale * photos ** -exponent.

    Attributes:
        floor: The error with any number of photos, from 0 to 1.
        scale: At least 0.
        exponent: From 0 to 2.
    """

    floor: float
    scale: float
    exponent: float

    def accuracy(self, photos: ArrayLike) -> NDArray[np.float64]:
        """Return the accuracies for numbers of training photos."""
        return 1 - self.floor - self.scale * np.asarray(photos, dtype=np.float64) ** -self.exponent

    @classmethod
    def fit(cls, photos: ArrayLike, errors: ArrayLike, deviations: ArrayLike) -> Self:
        """Fit the law by weighted least squares.

        Args:
            photos: Numbers of training photos (K,), K at least 3.
            errors: The error for each of them.
            deviations: The standard deviation of each error, above 0, up to a common factor.
        """
        numbers, values = np.asarray(photos, dtype=np.float64), np.asarray(errors, dtype=np.float64)
        unit = numbers.min()  # the scale is then of the size of the errors
        first = [values.min() / 2, max(values.max() - values.min() / 2, 1e-6), 0.5]
        bounds = ([0.0, 0.0, 0.0], [1.0, np.inf, _STEEPEST])
        x, weights = numbers / unit, 1 / np.asarray(deviations, dtype=np.float64)
        # Not curve_fit: it also estimates the covariance, and warns if three sizes leave none.
        floor, scale, exponent = least_squares(
            lambda law: (law[0] + law[1] * x ** -law[2] - values) * weights,
            np.clip(first, *bounds),
            lambda law: np.stack(
                [weights, x ** -law[2] * weights, -law[1] * np.log(x) * x ** -law[2] * weights], axis=1
            ),
            bounds,
            max_nfev=2000,
        ).x
        return cls(float(floor), float(scale * unit**exponent), float(exponent))


def fit_learning_curve(photos: Sequence[int], correct: NDArray[np.bool_]) -> PowerLaw:
    """Fit the power law to the mean errors of several draws of the training photos.

    Args:
        photos: Numbers of training photos (K,).
        correct: Whether each of N validation photos is classified correctly, for each of S draws: (S, K, N).
    """
    errors = 1 - correct.mean(axis=(0, 2))
    return PowerLaw.fit(photos, errors, _deviations(errors, correct.shape[2]))


def _deviations(errors: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the binomial standard deviations of errors on `count` photos, as if at least a quarter photo was wrong."""
    return np.sqrt((errors * (1 - errors)).clip(0.25 / count) / count)


def predict_accuracies(
    photos: Sequence[int], correct: NDArray[np.bool_], targets: Sequence[int], seed: int = 0
) -> NDArray[np.float64]:
    """Return samples (R, T) of the accuracy that one training with each number of photos in `targets` will measure.

    Each sample draws the S draws and the N validation photos anew, with replacement, fits the law to them, and adds the
    spread between the draws of the largest sizes. The samples so reflect which photos one trains with, and which ones
    one measures with, but not that the law itself may be wrong.

    Args:
        photos: Numbers of training photos (K,), K at least 3.
        correct: See `fit_learning_curve`; S at least 2.
        targets: Numbers of training photos (T,).
        seed: Of the samples.
    """
    rng = np.random.default_rng(seed)
    draws, _, count = correct.shape
    variances = correct.mean(axis=2).var(axis=0, ddof=1)
    varied = variances[variances > 0][-3:]  # the draws of all photos are the same one
    deviation = float(np.sqrt(varied.mean())) if len(varied) else 0.0
    of_photo = rng.multinomial(count, np.full(count, 1 / count), size=_ROUNDS) / count  # (R, N)
    of_draw = rng.multinomial(draws, np.full(draws, 1 / draws), size=_ROUNDS) / draws  # (R, S)
    by_draw = (1.0 - correct).reshape(-1, count) @ of_photo.T  # (S K, R)
    errors = np.einsum("skr,rs->rk", by_draw.reshape(draws, -1, _ROUNDS), of_draw)
    samples = 1 - _fit_many(photos, errors, _deviations(errors, count), targets)
    return np.clip(samples + rng.normal(0, deviation, (_ROUNDS, 1)), 0, 1)


def _fit_many(
    photos: Sequence[int], errors: NDArray[np.float64], deviations: NDArray[np.float64], targets: Sequence[int]
) -> NDArray[np.float64]:
    """Return the errors (R, T) of the laws that fit errors (R, K) best, with one of the exponents of a grid.

    With a given exponent, the fit is linear, so that all samples are fitted at once: a hundred times as fast as
    `PowerLaw.fit` for each.
    """
    numbers, unit = np.asarray(photos, dtype=np.float64), float(min(photos))
    weights = deviations**-2 / (deviations**-2).sum(axis=1, keepdims=True)  # (R, K)
    means = (weights * errors).sum(axis=1)
    best, found = np.full(len(errors), np.inf), np.empty((len(errors), len(targets)))
    for exponent in np.geomspace(0.01, _STEEPEST, 100):
        powers = (numbers / unit) ** -exponent
        mean_power = weights @ powers
        covariance = (weights * errors) @ powers - means * mean_power
        scale = (covariance / (weights @ powers**2 - mean_power**2)).clip(0)
        # A floor below 0 becomes 0; the best scale is then that of a line through the origin.
        through_origin = ((weights * errors) @ powers) / (weights @ powers**2)
        scale = np.where(means - scale * mean_power < 0, through_origin, scale)
        floor = (means - scale * mean_power).clip(0)
        misfit = (weights * (errors - floor[:, None] - scale[:, None] * powers) ** 2).sum(axis=1)
        is_better = misfit < best
        law = floor[:, None] + scale[:, None] * (np.asarray(targets) / unit) ** -exponent
        best, found = np.where(is_better, misfit, best), np.where(is_better[:, None], law, found)
    return found


def interval(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 95 % intervals (2, T), low and high, of samples (R, T)."""
    return np.quantile(samples, [0.025, 0.975], axis=0)


def accuracy_band(photos: Sequence[int], correct: NDArray[np.bool_], targets: Sequence[int]) -> NDArray[np.float64]:
    """Return the 95 % intervals (2, T), low and high, of the accuracies that `predict_accuracies` draws.

    They hold Wilson's interval of the law's accuracy on N photos: draws without a mistake do not vary.

    Args:
        photos: See `predict_accuracies`.
        correct: See `predict_accuracies`.
        targets: Numbers of training photos (T,).
    """
    count = correct.shape[2]
    low, high = interval(predict_accuracies(photos, correct, targets))
    expected = fit_learning_curve(photos, correct).accuracy(targets).clip(0, 1)
    of_photos = wilson_bounds(expected * count, count)
    return np.stack([np.minimum(low, of_photos[0]), np.maximum(high, of_photos[1])])


def read_learning_curve(run_dir: Path) -> dict[str, Any] | None:
    """Return what `flowers.learning_curve` has written into a run folder; None if there is none.

    Raises:
        ValueError: The file is damaged.
    """
    path = run_dir / CURVE_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    advice = "delete it, or run flowers.learning_curve again"
    check_file(path, content, LearningCurve, advice)
    if len({len(values) for values in content["curve"].values()}) > 1:
        raise ValueError(f"{path} is damaged: curve: expected four lists of the same length: {advice}")
    return content


def describe_learning_curve(content: Mapping[str, Any]) -> list[str]:
    """Say in sentences what a learning curve means: its law, twice the photos, and the check of the law."""
    law, twice, check = content["law"], content["twice"], content["check"]
    last = content["points"][-1]
    lines = [
        f"error = {law['floor']:.4f} + {law['scale']:.3g} / photos^{law['exponent']:.2f}, "
        f"on {content['validation_photos']:,} validation photos",
        f"{last['photos']:,} photos gave {last['accuracy']:.4f}; twice the photos ({twice['photos']:,}) would give "
        f"{twice['interval'][0]:.4f} to {twice['interval'][1]:.4f}",
    ]
    if check:
        low, high = check["interval"]
        verdict = "as it was" if low <= last["accuracy"] <= high else "but it was not"
        lines.append(
            f"check: from up to {check['photos']:,} photos, {low:.4f} to {high:.4f} was to be expected with "
            f"{last['photos']:,}, {verdict}: {last['accuracy']:.4f}"
        )
    return lines
