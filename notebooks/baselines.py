"""Older and newer classifiers side by side on one split, for the notebook `lineage`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from flowers.data.datamodule import ImageDataModule
from flowers.data.dataset import ImageDataset
from flowers.evaluation.statistics import wilson_interval
from flowers.runs.run_folder import RESULT_FILE, read_result

_SIDE, _CELL = 128, 16  # pixels of an image and of a HOG cell


class BaselineResult(NamedTuple):
    """A classifier with its validation accuracy, the 95 % interval, and its cost.

    `seconds` covers everything from images on disk to a trained and scored classifier.
    """

    method: str
    weights: str
    accuracy: float
    interval: Sequence[float]
    seconds: float


def hog_svm(data: ImageDataModule) -> BaselineResult:
    """Score histograms of oriented gradients (Dalal and Triggs, CVPR 2005) with a support vector machine.

    Args:
        data: Gives the split.

    Raises:
        ValueError: scikit-image or scikit-learn is not installed.
    """
    try:
        from skimage.feature import hog
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
    except ImportError as error:
        raise ValueError("HOG + SVM needs scikit-image and scikit-learn: pip install -e '.[notebooks]'") from error
    cells = {"pixels_per_cell": (_CELL, _CELL), "cells_per_block": (2, 2)}

    def descriptors(dataset: ImageDataset) -> NDArray[np.float64]:
        """(N, 1764)"""
        images = (dataset[number][0] for number in range(len(dataset)))
        return np.stack([hog(resize(rgb_to_grayscale(image), [_SIDE, _SIDE])[0].numpy(), **cells) for image in images])

    start = time.perf_counter()
    train, val = data.dataset("train"), data.dataset("val")
    classifier = make_pipeline(StandardScaler(), SVC(C=10)).fit(descriptors(train), train.labels)
    correct = int((classifier.predict(descriptors(val)) == np.array(val.labels)).sum())
    seconds = time.perf_counter() - start
    return BaselineResult("HOG + SVM", "none", correct / len(val), wilson_interval(correct, len(val)), seconds)


def load_run_result(run_dir: str | Path, method: str, weights: str) -> BaselineResult:
    """Return the result of a run, under the names that the table shows."""
    result = read_result(Path(run_dir))
    if result is None:
        raise ValueError(f"{run_dir} has no {RESULT_FILE}: finish the run first, with resume={run_dir}")
    scores, seconds = result["val"], sum(result["cost"]["seconds"].values())
    return BaselineResult(method, weights, scores["accuracy"], scores["interval"], seconds)


def baseline_table(entries: Sequence[BaselineResult]) -> Table:
    """Return a table with one row per classifier."""
    rows = Table("method", "weights", "val accuracy", "95 % interval", "seconds", box=box.SIMPLE)
    for method, weights, accuracy, (low, high), seconds in entries:
        rows.add_row(method, weights, f"{accuracy:.4f}", f"{low:.4f} to {high:.4f}", f"{seconds:.1f}")
    return rows
