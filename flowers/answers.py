"""What a classifier said of files, a row a file, as CSV, as JSON or as a table for people."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

from rich import box
from rich.console import Console
from rich.table import Column, Table

from flowers import atomic
from flowers.classifier import Prediction

_SHOWN = 1000  # rows of a table on the terminal


class Answer(NamedTuple):
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


Writer = Callable[[Iterable[Answer], Sequence[str]], int]  # gives back how many rows are no reasons


def writer(output: str | None) -> Writer:
    """By the ending of the file's name; for None, a table on the terminal. Raises ValueError for another ending."""
    if output is None:
        return _show
    kinds = {".csv": _write_csv, ".json": _write_json}
    kind = Path(output).suffix.lower()
    if kind not in kinds:
        raise ValueError(f"output={output}: wanted a name that ends in {' or '.join(kinds)}, or none for a table")
    return partial(kinds[kind], Path(output))


def _write_csv(path: Path, answers: Iterable[Answer], classes: Sequence[str]) -> int:
    good = 0
    with (
        atomic.writing(path) as beside,
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


def _write_json(path: Path, answers: Iterable[Answer], classes: Sequence[str]) -> int:
    good = 0
    with atomic.writing(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write("[")
        for place, answer in enumerate(answers):
            good += not answer.reason
            row = {"class" if name == "label" else name: value for name, value in answer._asdict().items()}
            file.write(("," if place else "") + "\n" + json.dumps(row))
        file.write("\n]\n")
    return good


def _show(answers: Iterable[Answer], classes: Sequence[str]) -> int:
    rows = iter(answers)
    table = Table(Column("photo", overflow="fold"), "class", "probability", "", box=box.SIMPLE)
    good = 0
    for answer in islice(rows, _SHOWN):
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
