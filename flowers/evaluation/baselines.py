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
from flowers.runtime.files import read_json
from flowers.runtime.run_folder import RESULT_FILE

_SIDE, _CELL = 128, 16  # pixels of a photo and of a cell of it


class BaselineResult(NamedTuple):
    """A way, what its weights are, its accuracy on val with a 95 % interval, and what it cost.

    The seconds are those from photos on disk to a classifier that is trained and scored.
    """

    way: str
    weights: str
    accuracy: float
    interval: Sequence[float]
    seconds: float


def hog_svm(data: ImageDataModule) -> BaselineResult:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) with a support vector machine, on `data`'s split.

    Raises ValueError where scikit-image or scikit-learn is not installed.
    """
    try:
        from skimage.feature import hog
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
    except ImportError as error:
        raise ValueError(
            "histograms and machine need scikit-image and -learn: pip install 'flowers[notebooks]'"
        ) from error
    cells = {"pixels_per_cell": (_CELL, _CELL), "cells_per_block": (2, 2)}

    def described(dataset: ImageDataset) -> NDArray[np.float64]:
        """(N, 1764)"""
        photos = (dataset[number][0] for number in range(len(dataset)))
        return np.stack([hog(resize(rgb_to_grayscale(photo), [_SIDE, _SIDE])[0].numpy(), **cells) for photo in photos])

    start = time.perf_counter()
    train, val = data.dataset("train"), data.dataset("val")
    machine = make_pipeline(StandardScaler(), SVC(C=10)).fit(described(train), train.labels)
    correct = int((machine.predict(described(val)) == np.array(val.labels)).sum())
    seconds = time.perf_counter() - start
    return BaselineResult("HOG + SVM", "none", correct / len(val), wilson_interval(correct, len(val)), seconds)


def load_run_result(folder: str | Path, way: str, weights: str) -> BaselineResult:
    """What a run's folder says."""
    result = read_json(Path(folder) / RESULT_FILE)
    scored, seconds = result["val"], sum(result["cost"]["seconds"].values())
    return BaselineResult(way, weights, scored["accuracy"], scored["interval"], seconds)


def baseline_table(entries: Sequence[BaselineResult]) -> Table:
    """The entries for people, a row each."""
    rows = Table("way", "weights", "val accuracy", "95 % interval", "seconds", box=box.SIMPLE)
    for way, weights, accuracy, (low, high), seconds in entries:
        rows.add_row(way, weights, f"{accuracy:.4f}", f"{low:.4f} to {high:.4f}", f"{seconds:.1f}")
    return rows
