"""Classify image files and write one row per file: CSV, JSON or a table on the terminal."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import flowers
from flowers.data.sources.listing import expand_image_paths
from flowers.deploy.classifier import Classifier, Prediction
from flowers.deploy.model_files import find_classifier
from flowers.deploy.unfinished_rows import UnfinishedRows
from flowers.runtime.files import atomic_write
from flowers.runtime.hardware import available_cores
from flowers.runtime.logging import progress_bar
from flowers.runtime.text import class_columns, one_line, write_csv
from flowers.settings.schema.programs import PredictSettings

_TABLE_ROWS = 1000  # rows shown on the terminal

_JSON_NAMES = {"label": "class", "rejected": "none_of_these"}


def run_prediction(settings: PredictSettings) -> int:
    """Classify the images that `settings.photos` names.

    Args:
        settings: Composed from conf/predict.yaml.

    Returns:
        How many files could be read.

    Raises:
        ValueError: A setting is wrong, there is no run or no file, or no file could be read. Then the rows, which give
            the reasons, are written nevertheless.
    """
    check_confidence(settings.confidence)
    make_row_writer(settings.output)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    run = find_classifier(settings.run)
    files = [str(file) for file in expand_image_paths(settings.photos)]
    classifier = Classifier.load(
        run,
        *(settings.accelerator, settings.precision, settings.tta, settings.reject, settings.engine, settings.root),
        max_megapixels=settings.max_megapixels,
    )
    num_workers = (
        settings.num_workers if settings.num_workers is not None else _default_num_workers(classifier, len(files))
    )

    def classify(left: Sequence[str]) -> Iterator[PredictionRow]:
        for file, result in progress_bar(classifier.stream(left, num_workers), "Classifying", len(left)):
            yield PredictionRow.from_result(file, result, settings.confidence)

    writer = make_row_writer(settings.output, classifier.rejection is not None, classifier.engine)
    if settings.output is None:
        readable = writer(classify(files), classifier.classes)
    else:
        output = Path(settings.output)
        with UnfinishedRows(output, PredictionRow.from_json, _origin(settings, run, classifier), files) as rows:
            if rows.done:
                console.print(f"going on behind the {rows.done:,} of {len(files):,} rows in {one_line(rows.path)}")
            for row in classify(files[rows.done :]):
                rows.append(row)
            readable = writer(rows, classifier.classes)
            rows.delete()
        console.print(_summary(output, len(files), readable))
    if not readable:
        raise ValueError(
            f"none of {len(files)} files could be read: expected images (JPEG, PNG, WebP, BMP, GIF, TIFF); "
            "the reasons are in the rows"
        )
    return readable


def _summary(output: Path, count: int, readable: int) -> str:
    unreadable = f"; {count - readable:,} cannot be read, and column reason says why" if readable < count else ""
    return f"{readable:,} of {count:,} photos classified, in {one_line(output)}{unreadable}"


def _origin(settings: PredictSettings, run: Path, classifier: Classifier) -> dict[str, Any]:
    """Return what rows depend on beside the photos."""
    weights = sorted(run.iterdir()) if run.is_dir() else [run]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    asked = {name: getattr(settings, name) for name in ("tta", "confidence", "reject", "precision")} | {
        "max_pixels": classifier.max_pixels
    }
    how = {"device": classifier.model.device.type, "engine": classifier.engine}
    return {"version": flowers.__version__, "run": str(run.resolve()), "files": states, **asked, **how}


def check_confidence(confidence: float | None) -> None:
    """Check the key `confidence` of the configuration.

    Raises:
        ValueError: It is not a probability.
    """
    if confidence is not None and not 0 <= confidence <= 1:
        raise ValueError(f"confidence={confidence}: expected a probability from 0 to 1, or null")


def _default_num_workers(classifier: Classifier, count: int) -> int:
    cores = available_cores()
    # Starting workers takes longer than a batch. On a few cores they slow the backbone by more than they gain.
    if count <= classifier.backbone.batch_size or (classifier.model.device.type == "cpu" and cores <= 4):
        return 0
    return min(cores, 8)


class PredictionRow(NamedTuple):
    """One row of the output.

    Attributes:
        path: The file.
        label: The most likely class. None if the file cannot be read.
        probability: Its probability. None if the file cannot be read.
        probabilities: The probability of every class. Empty if the file cannot be read.
        abstain: Whether the probability is below the confidence, or the file cannot be read.
        reason: Why the file cannot be read. Empty if it can.
        strangeness: See `Prediction`.
        rejected: Whether the image shows none of the classes.
    """

    path: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    abstain: bool
    reason: str
    strangeness: float | None = None
    rejected: bool = False

    @classmethod
    def from_result(cls, file: str, result: Prediction | str, confidence: float | None) -> Self:
        """Make the row of a prediction, or of the reason why there is none.

        Args:
            file: The path.
            result: The prediction or the reason.
            confidence: The probability below which the classifier abstains. None to never abstain.
        """
        if isinstance(result, str):
            return cls(file, None, None, {}, True, result)
        label, probability, probabilities, strangeness, rejected = result
        abstain = confidence is not None and probability < confidence
        return cls(file, label, probability, probabilities, abstain, "", strangeness, rejected)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Make the row of a list of its values.

        Raises:
            ValueError: It is none.
        """
        kinds = (str, str | None, float | None, dict, bool, str, float | None, bool)
        if not isinstance(values, list) or len(values) != len(kinds):
            raise ValueError("not a row")
        if not all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)):
            raise ValueError("not a row")
        return cls(*values)


RowWriter = Callable[[Iterable[PredictionRow], Sequence[str]], int]
"""Writes rows, given the class names, and returns how many of their files could be read."""


def make_row_writer(output: str | None, rejects: bool = False, engine: str = "pytorch") -> RowWriter:
    """Return the writer for a file name.

    Args:
        output: A name that ends in .csv or .json. None for a table on the terminal.
        rejects: Whether to write the strangeness, and whether the image is rejected.
        engine: What made the predictions; each row names it if it is not PyTorch.

    Raises:
        ValueError: The name ends in something else.
    """
    if output is None:
        return _print_table
    writers = {".csv": _write_csv, ".json": _write_json}
    suffix = Path(output).suffix.lower()
    if suffix not in writers:
        raise ValueError(f"output={output}: expected a name that ends in {' or '.join(writers)}, or null for a table")
    return partial(writers[suffix], Path(output), rejects, {} if engine == "pytorch" else {"engine": engine})


def _write_csv(
    path: Path, rejects: bool, origin: Mapping[str, str], rows: Iterable[PredictionRow], classes: Sequence[str]
) -> int:
    readable = 0

    def cells() -> Iterator[list[object]]:
        nonlocal readable
        columns = ["strangeness", "none_of_these"] if rejects else []
        of_classes = class_columns("probability", classes)
        yield ["path", "class", "probability", *of_classes, *columns, "abstain", "reason", *origin]
        for row in rows:
            readable += not row.reason
            probabilities = [f"{row.probabilities[name]:.6f}" if row.probabilities else "" for name in classes]
            probability = "" if row.probability is None else f"{row.probability:.6f}"
            strangeness = None if row.strangeness is None else round(row.strangeness, 6)
            rejection = [strangeness, str(row.rejected).lower()] if rejects else []
            end = [str(row.abstain).lower(), row.reason, *origin.values()]
            yield [row.path, row.label, probability, *probabilities, *rejection, *end]

    write_csv(path, cells())
    return readable


def _write_json(
    path: Path, rejects: bool, origin: Mapping[str, str], rows: Iterable[PredictionRow], classes: Sequence[str]
) -> int:
    readable = 0
    with atomic_write(path) as part, part.open("w", encoding="utf-8") as file:
        file.write("[")
        for index, row in enumerate(rows):
            readable += not row.reason
            fields = {_JSON_NAMES.get(name, name): value for name, value in row._asdict().items()}
            if not rejects:
                del fields["strangeness"], fields["none_of_these"]
            file.write(("," if index else "") + "\n" + json.dumps({**fields, **origin}))
        file.write("\n]\n")
    return readable


def _print_table(rows: Iterable[PredictionRow], classes: Sequence[str]) -> int:
    iterator = iter(rows)
    table = Table(Column("image", overflow="fold"), "class", "probability", "", box=box.SIMPLE)
    readable = 0
    for row in islice(iterator, _TABLE_ROWS):
        readable += not row.reason
        probability = "" if row.probability is None else f"{row.probability:.4f}"
        rejection = f"none of these (strangeness {row.strangeness:.3g})" if row.rejected else ""
        note = row.reason or rejection or ("abstains" if row.abstain else "")
        table.add_row(Text(one_line(row.path)), Text(one_line(row.label or "")), probability, Text(one_line(note)))
    hidden = 0
    for hidden, row in enumerate(iterator, 1):  # noqa: B007
        readable += not row.reason
    console = Console(highlight=False)
    console.print(table)
    if hidden:
        console.print(f"and {hidden} more: give output=FILE.csv or FILE.json for all")
    return readable
