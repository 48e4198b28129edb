"""Compare exported programs with the trained model: predictions and speed."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from flowers.deploy.export.formats import Exporter, ImageProgram
from flowers.evaluation.statistics import wilson_interval
from flowers.runtime.logging import progress_bar
from flowers.runtime.timing import Measurement, make_measurement, measure_interleaved, summarize

REFERENCE = "PyTorch"  # the version that all others are compared with


_TIE = 0.01  # two classes whose probabilities differ by at most this may swap places through rounding


_BATCH_SIZE, _MAX_WAITING = 16, 64  # images


_MAX_BATCH_BYTES = 2**24  # of a batch of several images; a program takes at least four times as much memory


def collect_probabilities(
    programs: Mapping[str, ImageProgram], images: Iterable[Tensor], count: int
) -> dict[str, Tensor]:
    """Run several programs on the same images. Each image is read once.

    Args:
        programs: The programs by name.
        images: Each uint8 (1, 3, H, W), of any size.
        count: How many images there are.

    Returns:
        For each program its outputs, float64 (N, C) or (N, C + 1), in the order of `images`.
    """
    rows: dict[str, dict[int, Tensor]] = {name: {} for name in programs}
    for indices, batch in _batch_by_size(progress_bar(images, "Comparing", count)):
        for name, program in programs.items():
            rows[name] |= dict(zip(indices, program(batch).double(), strict=True))
    return {name: torch.stack([by_index[index] for index in sorted(by_index)]) for name, by_index in rows.items()}


def _batch_by_size(images: Iterable[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Group images of equal size into batches: an image on its own takes several times as long.

    At most `_MAX_WAITING` images wait in memory for others of their size.

    Yields:
        The indices of the images and the batch (B, 3, H, W).
    """
    waiting: dict[torch.Size, dict[int, Tensor]] = {}
    for index, image in enumerate(images):
        same_size = waiting.setdefault(image.shape, {})
        same_size[index] = image
        is_full = len(same_size) == _BATCH_SIZE or len(same_size) * image.numel() > _MAX_BATCH_BYTES
        ready = [image.shape] if is_full else []
        if sum(map(len, waiting.values())) == _MAX_WAITING:
            ready = list(waiting)
        for size in ready:
            yield _stack(waiting.pop(size))
    yield from map(_stack, waiting.values())


def _stack(images: Mapping[int, Tensor]) -> tuple[list[int], Tensor]:
    return list(images), torch.cat(list(images.values()))


def compare_outputs(
    outputs: Mapping[str, Tensor], labels: Tensor, threshold: float | None = None
) -> dict[str, dict[str, Any]]:
    """Compare each version with the reference and with the labels.

    Args:
        outputs: The probabilities (N, C) of each version, the reference among them; with `threshold`, the strangeness
            is column C.
        labels: The class indices (N,).
        threshold: The strangeness above which an image is rejected.

    Returns:
        For each version:
        `agreement`, the share of images with the same most likely class;
        `agreement_or_tie`, which also counts a class that the reference gives nearly the same probability;
        `largest_difference`, of any probability;
        `accuracy` and its Wilson `interval`;
        with `threshold`, `rejection_agreement`, the share of images that both reject, or neither.
        A row with NaN or infinity agrees with nothing.
    """
    width = outputs[REFERENCE].shape[1] - (threshold is not None)
    reference = outputs[REFERENCE][:, :width]
    rows: dict[str, dict[str, Any]] = {}
    for name, output in outputs.items():
        probabilities = output[:, :width]
        predicted = probabilities.argmax(1)
        gaps = reference.amax(1) - reference.gather(1, predicted[:, None])[:, 0]
        gaps[~probabilities.isfinite().all(1)] = 1.0
        correct = int((predicted == labels).sum())
        rows[name] = {
            "agreement": int((gaps == 0).sum()) / len(labels),
            "agreement_or_tie": int((gaps <= _TIE).sum()) / len(labels),
            "largest_difference": float((probabilities - reference).abs().nan_to_num(1.0).max()),
            "accuracy": correct / len(labels),
            "interval": wilson_interval(correct, len(labels)),
        }
        if threshold is not None:
            strangeness, expected = output[:, -1], outputs[REFERENCE][:, -1]
            agrees = ((strangeness > threshold) == (expected > threshold)) & strangeness.isfinite()
            rows[name]["rejection_agreement"] = int(agrees.sum()) / len(labels)
    return rows


def check_agreement(
    rows: Mapping[str, Any], exporters: Sequence[Exporter], minimums: Mapping[str, float], count: int
) -> None:
    """Check that each exported version agrees with the reference: on labels, ties included, and on rejections.

    Args:
        rows: From `compare_outputs`.
        exporters: The exporters whose versions are checked.
        minimums: The least agreement, by the exporter's `agreement_key` and `rejection_key`.
        count: How many images were compared.

    Raises:
        ValueError: A version's agreement is below its minimum, and so is the upper end of its Wilson interval: one of
            30 images that differs says little of a share of 0.985.
    """
    for exporter in exporters:
        key, agreement = exporter.agreement_key, rows[exporter.name]["agreement_or_tie"]
        if _is_below(agreement, count, minimums[key]):
            different = count - round(agreement * count)
            hint = "; try calibration_images=512" if key == "int8_min_agreement" else ""
            hint += f", or {exporter.option}=false to leave it out" if exporter.option else ""
            raise ValueError(
                f"{exporter.name} predicts another label than {REFERENCE} for {different} of {count} val images, ties "
                f"aside: agreement {agreement:.4f}, expected at least {key}={minimums[key]}; nothing is exported{hint}"
            )
        key, agreement = exporter.rejection_key, rows[exporter.name].get("rejection_agreement")
        if agreement is not None and _is_below(agreement, count, minimums[key]):
            raise ValueError(
                f"{exporter.name} rejects other val images than {REFERENCE}: agreement {agreement:.4f} of {count}, "
                f"expected at least {key}={minimums[key]}; nothing is exported"
            )


def _is_below(agreement: float, count: int, minimum: float) -> bool:
    return agreement < minimum and wilson_interval(round(agreement * count), count)[1] < minimum


def measure_speeds(
    programs: Mapping[str, ImageProgram], images: Tensor, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Measure the images per second of each program on one batch.

    Args:
        programs: The programs by name.
        images: The batch, uint8 (B, 3, H, W).
        rounds: How often each program is measured, in turn with the others.
        seconds: The least duration of one measurement.

    Returns:
        For each program the median, the minimum and the maximum over the rounds.
    """

    def measurement(program: ImageProgram) -> Measurement:
        def work() -> int:
            program(images)
            return len(images)

        return make_measurement(work, torch.device("cpu"))

    measurements = {name: measurement(program) for name, program in programs.items()}
    rates = measure_interleaved(measurements, progress_bar(range(rounds), "Rounds"), seconds)
    return {name: summarize(values) for name, values in rates.items()}


def median_size(images: Iterable[Tensor]) -> tuple[int, int]:
    """Return the median height and the median width."""
    heights, widths = zip(*(image.shape[-2:] for image in images), strict=True)
    return round(statistics.median(heights)), round(statistics.median(widths))


def parity_rows(versions: Mapping[str, Any]) -> list[list[str]]:
    """Format the versions of a parity report: a heading, then one row per version."""
    rejects = any("rejection_agreement" in version for version in versions.values())
    heading = ["version", "file", "same label", "largest difference", "accuracy", "95% interval", "size", "images/s"]
    rows = [heading + ["same rejection"] * rejects]
    for name, version in versions.items():
        low, high = version["interval"]
        rows.append(
            [
                name,
                version["file"] or "",
                f"{version['agreement']:.4f}",
                f"{version['largest_difference']:.4f}",
                f"{version['accuracy']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{version['bytes'] / 1e6:.1f} MB" if version["bytes"] else "",
                f"{version['photos_per_second']['median']:.3g}",
                *([f"{version['rejection_agreement']:.4f}"] if rejects else []),
            ]
        )
    return rows


def parity_table(versions: Mapping[str, Any]) -> Table:
    """Return the rows as a terminal table, without the file names, which resemble the versions' names."""
    heading, *rows = [[cell for column, cell in enumerate(row) if column != 1] for row in parity_rows(versions)]
    table = Table(*heading, box=box.SIMPLE, collapse_padding=True)
    for row in rows:
        table.add_row(*row)
    return table
