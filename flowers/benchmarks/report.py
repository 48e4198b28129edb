"""Baseline, project and roofline side by side, and the predicted time of whole runs."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from flowers.benchmarks.baseline import BaselineBenchmark
from flowers.benchmarks.project import ProjectBenchmark
from flowers.data.datamodule import ImageDataModule
from flowers.models.classifier import ImageClassifier
from flowers.runtime.config import to_container
from flowers.runtime.files import write_json
from flowers.runtime.hardware import device_name, resolve_device, resolve_trainer_config
from flowers.runtime.logging import progress_bar
from flowers.runtime.run_folder import provenance
from flowers.runtime.timing import (
    Measurement,
    copy_bandwidth,
    flops_per_image,
    make_measurement,
    matmul_peak,
    measure_interleaved,
    summarize,
)

COLUMNS, RATIOS = ("plain", "ours", "limit"), ("ours/plain", "ours/limit")


_MEASURED_ROWS = ("decoding", "input pipeline", "forward pass", "head pass", "head epoch", "training step")


_BENCHMARK_METHODS = {  # by row: the method of Plain and of Ours
    "decoding": "decoding",
    "input pipeline": "pipeline",
    "forward pass": "forward",
    "head pass": "head_pass",
    "training step": "step",
}


def build_measurements(plain: BaselineBenchmark, ours: ProjectBenchmark) -> dict[tuple[str, str], Measurement]:
    """What is measured, by row and column; of the limits, the two rates that all of them follow from."""
    deterministic = bool(ours.settings["deterministic"])
    measured: dict[tuple[str, str], Measurement] = {}
    for name, method in _BENCHMARK_METHODS.items():
        # As in each of the processes that load photos, which leave the other cores to each other.
        threads = 1 if method in ("decoding", "pipeline") else None
        measured[name, "plain"] = make_measurement(getattr(plain, method), ours.device, threads)
        measured[name, "ours"] = make_measurement(getattr(ours, method), ours.device, threads, deterministic)
    measured["head epoch", "ours"] = lambda seconds: ours.head_epoch()
    measured["matrix products", "limit"] = lambda seconds: matmul_peak(ours.device, ours.frozen.dtype, seconds)
    measured["copying", "limit"] = lambda seconds: copy_bandwidth(seconds)
    return measured


def required_work(plain: BaselineBenchmark, size: int) -> dict[str, float]:
    """What a photo of `size` pixels a side takes at least, by row: operations, or bytes copied."""
    forward = flops_per_image(plain.backbone, size, training=False)
    return {
        "decoding": plain.pixels * 3,
        "input pipeline": size**2 * 3,
        "forward pass": forward,
        "head pass": forward,
        "training step": flops_per_image(plain.network, size, training=True),
    }


def add_derived_figures(
    figures: Mapping[tuple[str, str], Sequence[float]], needs: Mapping[str, float], photos: int
) -> dict[tuple[str, str], list[float]]:
    """The figures of each round and those that follow: the limits, and the plain head epoch over so many photos."""
    whole = {key: list(values) for key, values in figures.items()}
    for name, need in needs.items():
        source = "copying" if name in ("decoding", "input pipeline") else "matrix products"
        whole[name, "limit"] = [figure / need for figure in figures[source, "limit"]]
    whole["head epoch", "plain"] = [photos / figure for figure in figures["head pass", "plain"]]
    return whole


def measured_rows(figures: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, dict[str, Any]]:
    """The measured rows: the median of each figure."""
    medians: dict[str, dict[str, float | None]] = {}
    for (name, column), values in figures.items():
        medians.setdefault(name, {})[column] = summarize(values)["median"]
    return {
        name: comparison_row("seconds" if name == "head epoch" else "photos/s", medians[name])
        for name in _MEASURED_ROWS
    }


def comparison_row(unit: str, columns: Mapping[str, float | None]) -> dict[str, Any]:
    """A row of the table: the three columns, and how many times as fast ours is as the other two."""
    plain, ours, limit = (columns.get(name) for name in COLUMNS)
    return {
        "unit": unit,
        **{"plain": plain, "ours": ours, "limit": limit},
        **{"ours/plain": _speedup(unit, ours, plain), "ours/limit": _speedup(unit, ours, limit)},
    }


def _speedup(unit: str, ours: float | None, other: float | None) -> float | None:
    if not ours or not other:
        return None
    return other / ours if unit == "seconds" else ours / other


def loop_rate(compute: float, load: float, side_by_side: bool) -> float:
    """Photos a second where each is loaded and then computed with, at these rates."""
    return min(compute, load) if side_by_side else 1 / (1 / compute + 1 / load)


def head_stage(rows: Mapping[str, Any], counts: Sequence[int], epochs: int) -> dict[str, float]:
    """Seconds, by column, of a first run's head stage over `counts` = (train, val) photos.

    Ours passes through the backbone once; so does the limit, which takes nothing for the epochs.
    """
    once = {name: sum(counts) / rows["head pass"][name] if epochs else 0.0 for name in ("ours", "limit")}
    epoch = rows["head epoch"]
    return {"plain": epochs * epoch["plain"], "ours": once["ours"] + epochs * epoch["ours"], "limit": once["limit"]}


def finetune_stage(
    rows: Mapping[str, Any], counts: Sequence[int], epochs: int, loaders: int, side_by_side: bool
) -> dict[str, float]:
    """Seconds, by column, of so many epochs with everything training, each with validation.

    `loaders` processes load the photos, while the device computes or in turns with it; the limit only computes.
    """
    seconds = {}
    for column in COLUMNS:
        rates = [rows[name][column] for name in ("training step", "forward pass")]
        if column != "limit":
            load = loaders * rows["input pipeline"][column]
            rates = [loop_rate(compute, load, side_by_side) for compute in rates]
        seconds[column] = epochs * sum(count / rate for count, rate in zip(counts, rates, strict=True))
    return seconds


def both_stages(
    rows: Mapping[str, Any], counts: Sequence[int], epochs: Sequence[int], loaders: int, side_by_side: bool
) -> dict[str, float]:
    """Seconds, by column, of a run of `epochs` = (head stage, fine-tuning)."""
    head = head_stage(rows, counts, epochs[0])
    finetune = finetune_stage(rows, counts, epochs[1], loaders, side_by_side)
    return {column: head[column] + finetune[column] for column in COLUMNS}


def predicted_rows(
    measured: Mapping[str, Any],
    counts: Sequence[int],
    head_epochs: int,
    runs: Mapping[str, Sequence[int]],
    loaders: int,
    side_by_side: bool,
) -> dict[str, dict[str, Any]]:
    """The measured rows and what follows from them: the head stage by itself, then each of `runs`."""
    rows = dict(measured)
    rows[f"head stage, {head_epochs} epochs"] = comparison_row("seconds", head_stage(measured, counts, head_epochs))
    for name, epochs in runs.items():
        rows[f"{name}, predicted"] = comparison_row(
            "seconds", both_stages(measured, counts, epochs, loaders, side_by_side)
        )
    return rows


def benchmark_table(rows: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    """The rows for people; `names` for those that are shown under another one."""
    shown = Table(
        "", "unit", *COLUMNS, *(name.replace("/", "/\n") for name in RATIOS), box=box.SIMPLE, collapse_padding=True
    )
    for column in shown.columns:
        column.no_wrap = True
        column.justify = "left" if column.header in ("", "unit") else "right"
    for name, cells in rows.items():
        shown.add_row(
            names.get(name, name), cells["unit"], *(_format_number(cells[key]) for key in (*COLUMNS, *RATIOS))
        )
    return shown


def _format_number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def run_benchmark(cfg: DictConfig) -> dict[str, Any]:
    """Prints, writes and returns how fast each piece of fine-tuning is, and how long whole runs would take here."""

    if cfg.rounds < 1 or cfg.seconds <= 0 or cfg.head.epochs < 1 or (cfg.step_batch or 2) < 2:
        raise ValueError("wanted rounds >= 1, seconds > 0, head.epochs >= 1, and step_batch >= 2 or null")
    data = ImageDataModule(**{**cfg.data, "source": instantiate(cfg.data.source)}, seed=cfg.seed)
    if data.shards is not None:
        raise ValueError("data=shards: the plain way reads each photo from its own file: wanted a folder (data=folder)")
    counts = data.counts("train").total(), data.counts("val").total()
    if not all(counts):
        raise ValueError(f"{counts[0]} photos are in train and {counts[1]} in val: wanted some in both")
    parts = {name: instantiate(cfg[name]) for name in ("optimizer", "scheduler")}
    model = ImageClassifier(**to_container(cfg.model), classes=data.classes, image_size=cfg.data.image_size, **parts)
    settings = resolve_trainer_config(to_container(cfg.trainer))
    is_cpu = settings["accelerator"] == "cpu"
    batch_size = cfg.step_batch or (8 if is_cpu else cfg.data.batch_size)
    sample = random.Random(cfg.seed).sample(range(counts[0]), min(counts[0], 256))
    looped = sample[: 4 * batch_size] if is_cpu else range(counts[0])  # some seconds of either
    device = resolve_device(settings["accelerator"])
    plain = BaselineBenchmark(data, to_container(cfg.data), model, device, sample, looped, batch_size, cfg.optimizer.lr)
    needs = required_work(plain, cfg.data.image_size)
    ours = ProjectBenchmark(data, settings, model, parts["optimizer"], sample, looped, batch_size)

    rounds = progress_bar(range(cfg.rounds), "Rounds")
    figures = measure_interleaved(build_measurements(plain, ours), rounds, cfg.seconds)
    figures = add_derived_figures(figures, needs, sum(counts))
    loading = max(data.num_workers, 1), data.num_workers > 0 and not is_cpu
    rows = predicted_rows(measured_rows(figures), counts, cfg.head.epochs, to_container(cfg.predicted_runs), *loading)
    Console().print(benchmark_table(rows, {"training step": f"training step of {batch_size}"}))
    measured = {
        "rows": rows,
        "spread": {f"{name}, {column}": summarize(values) for (name, column), values in figures.items()},
        "needed": needs,
        "photos": {"train": counts[0], "val": counts[1], "step": batch_size, "forward": ours.frozen.batch_size},
        "device": device_name(device),
        "precision": settings["precision"],
        **provenance(),
        "settings": to_container(cfg),
    }
    if cfg.output:
        write_json(measured, cfg.output)
    return measured
