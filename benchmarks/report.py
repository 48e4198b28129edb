"""Compare baseline, project and hardware roofline, and predict the time of whole runs."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.baseline import BaselineBenchmark
from benchmarks.project import ProjectBenchmark
from benchmarks.roofline import copy_bandwidth, flops_per_image, matmul_peak
from benchmarks.settings import Speed
from flowers.data.datamodule import ImageDataModule
from flowers.features.int8_backbone import check_int8
from flowers.models.backbones import check_backbone
from flowers.models.input_settings import resolve_input_settings
from flowers.models.network import Network
from flowers.runs.run_folder import provenance
from flowers.runtime.files import write_json
from flowers.runtime.hardware import device_name, resolve_device, resolve_trainer_config
from flowers.runtime.logging import configure_logging, progress_bar
from flowers.runtime.timing import (
    Measurement,
    make_measurement,
    measure_interleaved,
    summarize,
)
from flowers.settings.config import build_parts
from flowers.settings.preprocessing import Preprocessing
from flowers.training.task import FineTuning

COLUMNS, RATIOS = ("baseline", "flowers", "roofline"), ("flowers/baseline", "flowers/roofline")


_MEASURED_ROWS = (
    "decoding",
    "input pipeline",
    "forward pass",
    "int8 forward pass",
    "head pass",
    "head epoch",
    "training step",
)


Figures = Mapping[tuple[str, str], Sequence[float]]
"""The figures of each round, by row and column."""


def run_benchmark(settings: Speed) -> dict[str, Any]:
    """Measure each piece of fine-tuning, and predict how long whole runs take on this machine.

    Args:
        settings: Composed from benchmarks/conf/speed.yaml.

    Returns:
        The figures, as `settings.output` holds them.

    Raises:
        ValueError: A setting is wrong, or there are no images in train or val.
    """
    configure_logging()  # Lightning is imported by now
    _check_settings(settings)
    trainer = resolve_trainer_config(settings.trainer.to_dict())
    device = resolve_device(trainer["accelerator"])
    check_backbone(settings.model.architecture, settings.model.weights, settings.model.options)
    model_settings, pixels = resolve_input_settings(settings.model, settings.data)
    data = ImageDataModule.from_settings(**build_parts(pixels), seed=settings.seed)
    if data.source.is_sequential:
        raise ValueError("data=shards: the baseline reads each image from its own file; give data=folder")
    counts = data.counts("train").total(), data.counts("val").total()
    if not all(counts):
        raise ValueError(f"train has {counts[0]} images and val has {counts[1]}: expected at least 1 in each")

    optimizer, preprocessing = settings.optimizer.build(), Preprocessing.from_settings(pixels, model_settings)
    network = Network(
        model_settings.architecture,
        data.classes,
        model_settings.weights,
        model_settings.options,
        preprocessing,
        split_digest=data.split_digest,
    )
    task = FineTuning(network, optimizer, settings.scheduler.build())
    is_cpu = device.type == "cpu"
    batch_size = settings.step_batch or (8 if is_cpu else settings.data.batch_size)
    sample = random.Random(settings.seed).sample(range(counts[0]), min(counts[0], 256))
    loop_indices = sample[: 4 * batch_size] if is_cpu else range(counts[0])  # takes some seconds on either
    baseline = BaselineBenchmark(
        data, pixels.to_dict(), network, device, sample, loop_indices, batch_size, settings.optimizer.lr
    )
    work = required_work(baseline, settings.data.image_size)
    project = ProjectBenchmark(data, trainer, task, optimizer, sample, loop_indices, batch_size, settings.int8)

    rounds = progress_bar(range(settings.rounds), "Rounds")
    measured = measure_interleaved(build_measurements(baseline, project), rounds, settings.seconds)
    figures = add_derived_figures(measured, work, sum(counts))
    rows = predicted_rows(
        measured_rows(figures),
        counts,
        settings.head.epochs,
        settings.predicted_runs.to_dict(),
        loaders=max(data.num_workers, 1),
        is_overlapped=data.num_workers > 0 and not is_cpu,
    )
    report = {
        "rows": rows,
        "spread": {f"{name}, {column}": summarize(values) for (name, column), values in figures.items()},
        "needed": work,
        "photos": {"train": counts[0], "val": counts[1], "step": batch_size, "forward": project.frozen.batch_size},
        "device": device_name(device),
        "precision": trainer["precision"],
        **provenance(),
        "settings": settings.to_dict(),
    }
    Console().print(benchmark_table(rows, {"training step": f"training step of {batch_size}"}))
    if settings.output:
        write_json(report, settings.output)
    return report


def _check_settings(settings: Speed) -> None:
    """Check what can be checked before an image is read."""
    if settings.int8:
        check_int8(resolve_trainer_config(settings.trainer.to_dict())["accelerator"])


def build_measurements(baseline: BaselineBenchmark, project: ProjectBenchmark) -> dict[tuple[str, str], Measurement]:
    """Return what is measured, by row and column, with the two rates from which the roofline follows."""
    deterministic = bool(project.settings["deterministic"])
    measurements: dict[tuple[str, str], Measurement] = {}
    for name in _MEASURED_ROWS:
        if name in ("int8 forward pass", "head epoch"):  # the baseline has no such pass; its epoch follows from it
            continue
        # Data loading processes use one thread each.
        threads = 1 if name in ("decoding", "input pipeline") else None
        method = name.replace(" ", "_")
        measurements[name, "baseline"] = make_measurement(getattr(baseline, method), project.device, threads)
        measurements[name, "flowers"] = make_measurement(
            getattr(project, method), project.device, threads, deterministic
        )
    if project.int8 is not None:
        measurements["int8 forward pass", "flowers"] = make_measurement(project.int8_forward_pass, project.device)
    measurements["head epoch", "flowers"] = lambda seconds: project.head_epoch()
    measurements["matrix products", "roofline"] = lambda seconds: matmul_peak(
        project.device, project.frozen.dtype, seconds
    )
    measurements["copying", "roofline"] = lambda seconds: copy_bandwidth(seconds)
    return measurements


def required_work(baseline: BaselineBenchmark, size: int) -> dict[str, float]:
    """Return the least work per image, by row.

    Args:
        baseline: The baseline, with its network and its images.
        size: The image size in pixels a side.

    Returns:
        Bytes to copy for decoding and the input pipeline, floating-point operations for the other rows.
    """
    forward = flops_per_image(baseline.backbone, size, training=False)
    return {
        "decoding": baseline.mean_pixels * 3,
        "input pipeline": size**2 * 3,
        "forward pass": forward,
        "head pass": forward,
        "training step": flops_per_image(baseline.network, size, training=True),
    }


def add_derived_figures(
    figures: Figures, work: Mapping[str, float], image_count: int
) -> dict[tuple[str, str], list[float]]:
    """Add the roofline of each row, and the baseline's head epoch over `image_count` images.

    Args:
        figures: The measured figures.
        work: From `required_work`.
        image_count: The images of train and val together.
    """
    derived = {key: list(values) for key, values in figures.items()}
    for name, amount in work.items():
        source = "copying" if name in ("decoding", "input pipeline") else "matrix products"
        derived[name, "roofline"] = [figure / amount for figure in figures[source, "roofline"]]
    derived["head epoch", "baseline"] = [image_count / figure for figure in figures["head pass", "baseline"]]
    return derived


def measured_rows(figures: Figures) -> dict[str, dict[str, Any]]:
    """Return the measured rows of the table, with the median of each figure."""
    medians: dict[str, dict[str, float | None]] = {}
    for (name, column), values in figures.items():
        medians.setdefault(name, {})[column] = summarize(values)["median"]
    return {
        name: comparison_row("seconds" if name == "head epoch" else "images/s", medians[name])
        for name in _MEASURED_ROWS
        if name in medians
    }


def comparison_row(unit: str, columns: Mapping[str, float | None]) -> dict[str, Any]:
    """Return a row of the table: unit, columns, and how many times as fast flowers is as the other two columns."""
    baseline, flowers, roofline = (columns.get(name) for name in COLUMNS)
    return {
        "unit": unit,
        **{"baseline": baseline, "flowers": flowers, "roofline": roofline},
        "flowers/baseline": _speedup(unit, flowers, baseline),
        "flowers/roofline": _speedup(unit, flowers, roofline),
    }


def _speedup(unit: str, flowers: float | None, other: float | None) -> float | None:
    if not flowers or not other:
        return None
    return other / flowers if unit == "seconds" else flowers / other


def loop_rate(compute: float, load: float, is_overlapped: bool) -> float:
    """Return the images per second of a loop that loads images and computes with them.

    Args:
        compute: The images per second of computing alone.
        load: The images per second of loading alone.
        is_overlapped: Whether loading and computing run at the same time, or take turns.
    """
    return min(compute, load) if is_overlapped else 1 / (1 / compute + 1 / load)


def head_stage(rows: Mapping[str, Any], counts: Sequence[int], epochs: int) -> dict[str, float]:
    """Return the seconds, by column, of a first run's head stage.

    This project runs the backbone once over the images. So does the roofline, which counts no time for the epochs.

    Args:
        rows: The measured rows.
        counts: The images of train and val.
        epochs: The epochs of the head stage.
    """
    passes = {name: sum(counts) / rows["head pass"][name] if epochs else 0.0 for name in ("flowers", "roofline")}
    epoch = rows["head epoch"]
    return {
        "baseline": epochs * epoch["baseline"],
        "flowers": passes["flowers"] + epochs * epoch["flowers"],
        "roofline": passes["roofline"],
    }


def finetune_stage(
    rows: Mapping[str, Any], counts: Sequence[int], epochs: int, loaders: int, is_overlapped: bool
) -> dict[str, float]:
    """Return the seconds, by column, of a fine-tune stage with validation after each epoch.

    The roofline only computes.

    Args:
        rows: The measured rows.
        counts: The images of train and val.
        epochs: The epochs of the fine-tune stage.
        loaders: How many processes load images.
        is_overlapped: Whether they load while the device computes, or in turns with it.
    """
    seconds = {}
    for column in COLUMNS:
        rates = [rows[name][column] for name in ("training step", "forward pass")]
        if column != "roofline":
            load = loaders * rows["input pipeline"][column]
            rates = [loop_rate(compute, load, is_overlapped) for compute in rates]
        seconds[column] = epochs * sum(count / rate for count, rate in zip(counts, rates, strict=True))
    return seconds


def both_stages(
    rows: Mapping[str, Any], counts: Sequence[int], epochs: Sequence[int], loaders: int, is_overlapped: bool
) -> dict[str, float]:
    """Return the seconds, by column, of a run with `epochs` = (head stage, fine-tune stage)."""
    head = head_stage(rows, counts, epochs[0])
    finetune = finetune_stage(rows, counts, epochs[1], loaders, is_overlapped)
    return {column: head[column] + finetune[column] for column in COLUMNS}


def predicted_rows(
    measured: Mapping[str, Any],
    counts: Sequence[int],
    head_epochs: int,
    runs: Mapping[str, Sequence[int]],
    loaders: int,
    is_overlapped: bool,
) -> dict[str, dict[str, Any]]:
    """Add the predicted rows to the measured ones: the head stage, then each run.

    Args:
        measured: The measured rows.
        counts: The images of train and val.
        head_epochs: The epochs of the row "head stage".
        runs: The epochs of both stages, by the name of the run.
        loaders: How many processes load images.
        is_overlapped: Whether they load while the device computes, or in turns with it.
    """
    rows = dict(measured)
    rows[f"head stage, {head_epochs} epochs"] = comparison_row("seconds", head_stage(measured, counts, head_epochs))
    for name, epochs in runs.items():
        seconds = both_stages(measured, counts, epochs, loaders, is_overlapped)
        rows[f"{name}, predicted"] = comparison_row("seconds", seconds)
    return rows


def benchmark_table(rows: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """Return the rows as a terminal table.

    Args:
        rows: The rows by name.
        titles: What to show in place of a row's name.
    """
    headings = ("", "unit", *COLUMNS, *(name.replace("/", "/\n") for name in RATIOS))
    table = Table(*headings, box=box.SIMPLE, collapse_padding=True)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "left" if column.header in ("", "unit") else "right"
    for name, row in rows.items():
        numbers = (_format_number(row[key]) for key in (*COLUMNS, *RATIOS))
        table.add_row(titles.get(name, name), row["unit"], *numbers)
    return table


def _format_number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
