"""The confusion matrix as its cells that are not empty: 1,000 classes have a million cells, and few images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowers.runs.predictions import Predictions

MATRIX_CLASSES = 40  # more classes than these are listed by their most confused pairs, not drawn as a matrix


class ConfusionCells(NamedTuple):
    """The K cells of a confusion matrix that hold an image, in the order of the matrix's rows.

    Attributes:
        true: The true class of each cell: int64 (K,).
        predicted: Its predicted class: int64 (K,).
        counts: The number of its images: int64 (K,).
        class_count: The number of classes C.
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    counts: NDArray[np.int64]
    class_count: int

    def matrix(self) -> list[list[int]]:
        """Return the whole matrix (C, C), one row per true class."""
        matrix = np.zeros((self.class_count, self.class_count), np.int64)
        matrix[self.true, self.predicted] = self.counts
        rows: list[list[int]] = matrix.tolist()
        return rows

    def confused_pairs(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return true class, predicted class, and number of images `n` of each pair that differs, most images first."""
        wrong = np.flatnonzero(self.true != self.predicted)
        order = wrong[np.argsort(-self.counts[wrong], kind="stable")]
        cells = zip(*(column[order].tolist() for column in self[:3]), strict=True)
        return [{"true": classes[true], "predicted": classes[answer], "n": count} for true, answer, count in cells]


def count_confusion(predictions: Predictions) -> ConfusionCells:
    """Count the images of each pair of true and predicted class.

    The memory grows with the images. torchmetrics counts with `bincount` of torch, which allocates 8 N C² bytes if
    deterministic algorithms are requested.
    """
    class_count = len(predictions.classes)
    pairs = predictions.labels.numpy() * class_count + predictions.predicted.numpy()
    cells, counts = np.unique(pairs, return_counts=True)
    return ConfusionCells(cells // class_count, cells % class_count, counts, class_count)
