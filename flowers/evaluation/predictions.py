"""A model's logits for the images of a split, as saved in the run folder."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowers.runtime.files import atomic_write_text
from flowers.runtime.run_folder import PREDICTIONS_DIR


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
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "true", *self.classes])
        for name, label, row in zip(self.paths, self.labels.tolist(), self.logits.tolist(), strict=True):
            writer.writerow([name, self.classes[label], *map(repr, row)])
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text.getvalue())


def load_predictions(path: str | Path) -> Predictions:
    """Read a file that `Predictions.save` wrote.

    Raises:
        ValueError: The file is missing or has other content.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            (_, _, *classes), *lines = list(csv.reader(file))
        labels = torch.tensor([classes.index(true) for _, true, *_ in lines])
        logits = torch.tensor([[float(value) for value in row] for _, _, *row in lines], dtype=torch.float64)
        assert logits.shape == (len(lines), len(classes))
    except (OSError, ValueError, AssertionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected a CSV file of predictions"
        raise ValueError(f"{path} cannot be read: {reason}; train the run again to write it") from error
    return Predictions([name for name, *_ in lines], labels, logits, classes)


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
