"""A model's logits for the images of a split, as saved in the run folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowers.data.dataset import ImageDataset
from flowers.models.network import Network, predict_logits
from flowers.runs.run_folder import PREDICTIONS_DIR
from flowers.runtime.text import class_columns, read_csv, write_csv
from flowers.settings.schema.run_files import are_classes

_LOGIT = "logit"  # of each class, in the names of columns


@dataclass(frozen=True)
class Predictions:
    """A model's predictions of N images.

    Args:
        paths: Paths of the images below the data root, separated by "/".
        labels: True classes (N,), as indices into `classes`.
        logits: Logits (N, C) in float64.
        classes: The names of the C classes.
    """

    paths: Sequence[str]
    labels: Tensor
    logits: Tensor
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def predicted(self) -> Tensor:
        """The most likely class of each image: int64 (N,)."""
        return self.logits.argmax(1)

    @property
    def correct(self) -> Tensor:
        """Whether the most likely class is the true one: bool (N,)."""
        return self.predicted == self.labels

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return the softmax of logits / `temperature`: float64 (N, C), each row adds up to 1."""
        return (self.logits / temperature).softmax(1)

    def save(self, path: Path) -> None:
        """Write a CSV file with one line per image: path, true class, and the exact logit of each class."""
        write_csv(path, self._rows())

    def _rows(self) -> Iterator[list[str | float]]:
        yield ["path", "true", *class_columns(_LOGIT, self.classes)]
        for path, label, logits in zip(self.paths, self.labels.tolist(), self.logits, strict=True):
            yield [path, self.classes[label], *logits.tolist()]


def load_predictions(path: str | Path) -> Predictions:
    """Read a file that `Predictions.save` wrote.

    Raises:
        ValueError: The file is missing or has other content.
    """
    try:
        first, *lines = read_csv(path) or [[]]
        classes = first[2:]
        if all(name.startswith(f"{_LOGIT}_") for name in classes):  # else of a run of November 2026
            classes = [name.removeprefix(f"{_LOGIT}_") for name in classes]
        if first[:2] != ["path", "true"] or not are_classes(classes) or not lines:
            raise ValueError("expected a CSV file of predictions")
        index = {name: number for number, name in enumerate(classes)}
        for number, line in enumerate(lines, 2):
            if len(line) != len(first) or line[1] not in index:
                raise ValueError(f"line {number}: expected a path, one of the classes, and {len(classes)} logits")
        labels = torch.tensor([index[line[1]] for line in lines], dtype=torch.int64)
        logits = np.array([[float(value) for value in line[2:]] for line in lines])
        if not np.isfinite(logits).all():
            raise ValueError(f"line {int(np.isfinite(logits).all(1).argmin()) + 2}: expected finite logits")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read: {reason}; train the run again to write it") from error
    return Predictions([name for name, *_ in lines], labels, torch.from_numpy(logits), classes)


def concat_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of the images of several splits, such as folds, as one."""
    labels, logits = (torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "logits"))
    return Predictions([path for part in parts for path in part.paths], labels, logits, parts[0].classes)


def load_run_predictions(run_dir: Path, split: str) -> Predictions:
    """Return the predictions of a run for a split, as training saved them.

    Raises:
        ValueError: The run has no such predictions: it has not finished, or has no such split.
    """
    path = run_dir / PREDICTIONS_DIR / f"{split}.csv"
    if not path.is_file():
        raise ValueError(
            f"{run_dir} has no {PREDICTIONS_DIR}/{split}.csv: "
            "finish the run (python -m flowers.train resume=FOLDER) or choose another split"
        )
    return load_predictions(path)


def predict_features(model: Network, features: Tensor, dataset: ImageDataset) -> Predictions:
    """Return the predictions of a model's head for the features (N, F) of the images of `dataset`."""
    return Predictions(dataset.paths, torch.tensor(dataset.labels), predict_logits(model, features), model.classes)
