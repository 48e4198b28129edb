"""Compare exported programs with the trained model, in their answers and in speed."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from flowers.deploy.export.formats import ImageProgram
from flowers.evaluation.statistics import wilson_interval
from flowers.runtime.logging import progress_bar
from flowers.runtime.timing import Measurement, make_measurement, measure_interleaved, summarize

REFERENCE = "PyTorch"  # the name of the version that the others are compared with


TIE = 0.01  # of probability: classes that the reference holds for as likely as that may change places by rounding


_BATCH_SIZE, _MAX_WAITING = 16, 64  # photos


_MAX_BATCH_BYTES = 2**24  # of a batch, unless it is one photo; a program takes four times as many and more


def collect_probabilities(
    programs: Mapping[str, ImageProgram], photos: Iterable[Tensor], count: int
) -> dict[str, Tensor]:
    """The probabilities (N, C) of each program, in float64, of `count` photos (1, 3, H, W), each read once."""
    answers: dict[str, dict[int, Tensor]] = {name: {} for name in programs}
    for places, batch in _batch_by_size(progress_bar(photos, "Comparing", count)):
        for name, program in programs.items():
            answers[name] |= dict(zip(places, program(batch).double(), strict=True))
    return {name: torch.stack([rows[place] for place in sorted(rows)]) for name, rows in answers.items()}


def _batch_by_size(photos: Iterable[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Photos of one size in batches, with their places: by itself a photo takes several times as long.

    Of the photos that wait for others of their size there are at most _WAITING in memory.
    """
    waiting: dict[torch.Size, dict[int, Tensor]] = {}
    for place, photo in enumerate(photos):
        same = waiting.setdefault(photo.shape, {})
        same[place] = photo
        full = [photo.shape] if len(same) == _BATCH_SIZE or len(same) * photo.numel() > _MAX_BATCH_BYTES else []
        if sum(map(len, waiting.values())) == _MAX_WAITING:
            full = list(waiting)
        for size in full:
            yield _stack(waiting.pop(size))
    yield from map(_stack, waiting.values())


def _stack(photos: Mapping[int, Tensor]) -> tuple[list[int], Tensor]:
    return list(photos), torch.cat(list(photos.values()))


def compare_outputs(answers: Mapping[str, Tensor], labels: Tensor) -> dict[str, dict[str, Any]]:
    """Of each version's probabilities (N, C): agreement with the reference, largest difference, accuracy, interval.

    Agreement is the share of photos with the same likeliest class, and that with the same or one as likely to within
    `TIE` by the reference; what is no number agrees with nothing.
    """
    reference = answers[REFERENCE]
    rows = {}
    for name, probabilities in answers.items():
        predicted = probabilities.argmax(1)
        lost = reference.amax(1) - reference.gather(1, predicted[:, None])[:, 0]
        lost[~probabilities.isfinite().all(1)] = 1.0
        correct = int((predicted == labels).sum())
        rows[name] = {
            "agreement": int((lost == 0).sum()) / len(labels),
            "agreement_or_tie": int((lost <= TIE).sum()) / len(labels),
            "largest_difference": float((probabilities - reference).abs().nan_to_num(1.0).max()),
            "accuracy": correct / len(labels),
            "interval": wilson_interval(correct, len(labels)),
        }
    return rows


def check_agreement(rows: Mapping[str, Any], limits: Mapping[str, tuple[str, float]], count: int) -> None:
    """Raises ValueError where a version's agreement, ties included, is under its limit, a setting's name and value."""
    for name, (setting, limit) in limits.items():
        if name in rows and (agreement := rows[name]["agreement_or_tie"]) < limit:
            others = count - round(agreement * count)
            hint = (
                "; calibration_images=512 may help, int8=false leaves it out" if setting == "int8_min_agreement" else ""
            )
            raise ValueError(
                f"{name} gives {others} of {count} val photos another label than {REFERENCE}, ties aside: agreement "
                f"{agreement:.4f}, wanted at least {setting}={limit}; nothing is exported{hint}"
            )


def measure_speeds(
    programs: Mapping[str, ImageProgram], photos: Tensor, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Photos a second of each program given photos (B, 3, H, W): median, least and greatest of interleaved rounds."""

    def way(program: ImageProgram) -> Measurement:
        def work() -> int:
            program(photos)
            return len(photos)

        return make_measurement(work, torch.device("cpu"))

    ways = {name: way(program) for name, program in programs.items()}
    figures = measure_interleaved(ways, progress_bar(range(rounds), "Rounds"), seconds)
    return {name: summarize(values) for name, values in figures.items()}


def median_size(photos: Iterable[Tensor]) -> tuple[int, int]:
    """The medians of heights and widths."""
    heights, widths = zip(*(photo.shape[-2:] for photo in photos), strict=True)
    return round(statistics.median(heights)), round(statistics.median(widths))


def parity_rows(rows: Mapping[str, Any]) -> list[list[str]]:
    """A heading, then a line a version, for people."""
    lines = [["version", "file", "same label", "largest difference", "accuracy", "95 % interval", "size", "photos/s"]]
    for name, row in rows.items():
        low, high = row["interval"]
        lines.append(
            [
                name,
                row["file"] or "",
                f"{row['agreement']:.4f}",
                f"{row['largest_difference']:.4f}",
                f"{row['accuracy']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{row['bytes'] / 1e6:.1f} MB" if row["bytes"] else "",
                f"{row['photos_per_second']['median']:.3g}",
            ]
        )
    return lines


def parity_table(rows: Mapping[str, Any]) -> Table:
    """The rows for a terminal; without the names of the files, which the versions' names resemble."""
    heading, *lines = [[cell for place, cell in enumerate(line) if place != 1] for line in parity_rows(rows)]
    shown = Table(*heading, box=box.SIMPLE, collapse_padding=True)
    for line in lines:
        shown.add_row(*line)
    return shown
