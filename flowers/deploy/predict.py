"""Classify image files, a row each, as CSV, as JSON or as a table."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Column, Table

from flowers.data.folder import expand_image_paths
from flowers.deploy.classifier import Classifier, Prediction
from flowers.runtime.config import to_container
from flowers.runtime.files import atomic_write
from flowers.runtime.hardware import available_cores
from flowers.runtime.logging import progress_bar
from flowers.runtime.run_folder import find_checkpoint


def run_prediction(cfg: DictConfig) -> int:
    """Classifies the photos that `cfg` names, a row a file; returns how many could be read."""

    if cfg.confidence is not None and not 0 <= cfg.confidence <= 1:
        raise ValueError(f"confidence={cfg.confidence}: wanted a probability from 0 to 1")
    files = [str(file) for file in expand_image_paths(to_container(cfg)["photos"])]
    writer = make_row_writer(cfg.output)
    classifier = Classifier.load(find_checkpoint(cfg.run), cfg.accelerator, cfg.precision)
    cores = available_cores()
    # To start workers takes longer than a batch; on a few cores they take from the backbone more than they add.
    alone = len(files) <= classifier.backbone.batch_size or (classifier.model.device.type == "cpu" and cores <= 4)
    workers = cfg.num_workers if cfg.num_workers is not None else 0 if alone else min(cores, 8)
    said = progress_bar(classifier.stream(files, workers), "Classifying", len(files))
    return writer((PredictionRow.of(file, each, cfg.confidence) for file, each in said), classifier.classes)


_TABLE_ROWS = 1000  # rows of a table on the terminal


class PredictionRow(NamedTuple):
    """A row: of a file that could not be read, only path and `reason` say something."""

    path: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    abstain: bool
    reason: str

    @classmethod
    def of(cls, file: str, said: Prediction | str, confidence: float | None) -> Self:
        """Of a prediction or a reason; `confidence`: the probability under which the classifier abstains."""
        if isinstance(said, str):
            return cls(file, None, None, {}, True, said)
        return cls(file, *said, confidence is not None and said.probability < confidence, "")


RowWriter = Callable[[Iterable[PredictionRow], Sequence[str]], int]  # gives back how many rows are no reasons


def make_row_writer(output: str | None) -> RowWriter:
    """By the ending of the file's name; for None, a table on the terminal. Raises ValueError for another ending."""
    if output is None:
        return _print_table
    kinds = {".csv": _write_csv, ".json": _write_json}
    kind = Path(output).suffix.lower()
    if kind not in kinds:
        raise ValueError(f"output={output}: wanted a name that ends in {' or '.join(kinds)}, or none for a table")
    return partial(kinds[kind], Path(output))


def _write_csv(path: Path, answers: Iterable[PredictionRow], classes: Sequence[str]) -> int:
    good = 0
    with (
        atomic_write(path) as beside,
        beside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "class", "probability", *classes, "abstain", "reason"])
        for answer in answers:
            good += not answer.reason
            each = [f"{answer.probabilities[name]:.6f}" if answer.probabilities else "" for name in classes]
            probability = "" if answer.probability is None else f"{answer.probability:.6f}"
            rows.writerow([answer.path, answer.label, probability, *each, str(answer.abstain).lower(), answer.reason])
    return good


def _write_json(path: Path, answers: Iterable[PredictionRow], classes: Sequence[str]) -> int:
    good = 0
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write("[")
        for place, answer in enumerate(answers):
            good += not answer.reason
            row = {"class" if name == "label" else name: value for name, value in answer._asdict().items()}
            file.write(("," if place else "") + "\n" + json.dumps(row))
        file.write("\n]\n")
    return good


def _print_table(answers: Iterable[PredictionRow], classes: Sequence[str]) -> int:
    rows = iter(answers)
    table = Table(Column("photo", overflow="fold"), "class", "probability", "", box=box.SIMPLE)
    good = 0
    for answer in islice(rows, _TABLE_ROWS):
        good += not answer.reason
        probability = "" if answer.probability is None else f"{answer.probability:.4f}"
        table.add_row(answer.path, answer.label, probability, answer.reason or ("abstains" if answer.abstain else ""))
    more = 0
    for more, answer in enumerate(rows, 1):  # noqa: B007
        good += not answer.reason
    console = Console(highlight=False)
    console.print(table)
    if more:
        console.print(f"and {more} more: output=FILE.csv or FILE.json holds all")
    return good
