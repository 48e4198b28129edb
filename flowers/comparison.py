"""The plain way, ours and the hardware's limit side by side: a row for each piece, and what whole runs then take."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from flowers.ours import Ours
from flowers.plain import Plain
from flowers.timing import Way, copy_rate, matrix_peak, operations, spread, under

COLUMNS, RATIOS = ("plain", "ours", "limit"), ("ours/plain", "ours/limit")
MEASURED = ("decoding", "input pipeline", "forward pass", "head pass", "head epoch", "training step")
PIECES = {  # by row: the method of Plain and of Ours
    "decoding": "decoding",
    "input pipeline": "pipeline",
    "forward pass": "forward",
    "head pass": "head_pass",
    "training step": "step",
}


def ways(plain: Plain, ours: Ours) -> dict[tuple[str, str], Way]:
    """What is measured, by row and column; of the limits, the two rates that all of them follow from."""
    deterministic = bool(ours.settings["deterministic"])
    measured: dict[tuple[str, str], Way] = {}
    for name, method in PIECES.items():
        # As in each of the processes that load photos, which leave the other cores to each other.
        threads = 1 if method in ("decoding", "pipeline") else None
        measured[name, "plain"] = under(getattr(plain, method), ours.device, threads)
        measured[name, "ours"] = under(getattr(ours, method), ours.device, threads, deterministic)
    measured["head epoch", "ours"] = lambda seconds: ours.head_epoch()
    measured["matrix products", "limit"] = lambda seconds: matrix_peak(ours.device, ours.frozen.dtype, seconds)
    measured["copying", "limit"] = lambda seconds: copy_rate(seconds)
    return measured


def needed(plain: Plain, size: int) -> dict[str, float]:
    """What a photo of `size` pixels a side takes at least, by row: operations, or bytes copied."""
    forward = operations(plain.backbone, size, training=False)
    return {
        "decoding": plain.pixels * 3,
        "input pipeline": size**2 * 3,
        "forward pass": forward,
        "head pass": forward,
        "training step": operations(plain.network, size, training=True),
    }


def complete(
    figures: Mapping[tuple[str, str], Sequence[float]], needs: Mapping[str, float], photos: int
) -> dict[tuple[str, str], list[float]]:
    """The figures of each round and those that follow: the limits, and the plain head epoch over so many photos."""
    whole = {key: list(values) for key, values in figures.items()}
    for name, need in needs.items():
        source = "copying" if name in ("decoding", "input pipeline") else "matrix products"
        whole[name, "limit"] = [figure / need for figure in figures[source, "limit"]]
    whole["head epoch", "plain"] = [photos / figure for figure in figures["head pass", "plain"]]
    return whole


def rows(figures: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, dict[str, Any]]:
    """The measured rows: the median of each figure."""
    medians: dict[str, dict[str, float | None]] = {}
    for (name, column), values in figures.items():
        medians.setdefault(name, {})[column] = spread(values)["median"]
    return {name: row("seconds" if name == "head epoch" else "photos/s", medians[name]) for name in MEASURED}


def row(unit: str, columns: Mapping[str, float | None]) -> dict[str, Any]:
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


def predicted(
    measured: Mapping[str, Any],
    counts: Sequence[int],
    head_epochs: int,
    runs: Mapping[str, Sequence[int]],
    loaders: int,
    side_by_side: bool,
) -> dict[str, dict[str, Any]]:
    """The measured rows and what follows from them: the head stage by itself, then each of `runs`."""
    rows = dict(measured)
    rows[f"head stage, {head_epochs} epochs"] = row("seconds", head_stage(measured, counts, head_epochs))
    for name, epochs in runs.items():
        rows[f"{name}, predicted"] = row("seconds", both_stages(measured, counts, epochs, loaders, side_by_side))
    return rows


def table(rows: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    """The rows for people; `names` for those that are shown under another one."""
    shown = Table(
        "", "unit", *COLUMNS, *(name.replace("/", "/\n") for name in RATIOS), box=box.SIMPLE, collapse_padding=True
    )
    for column in shown.columns:
        column.no_wrap = True
        column.justify = "left" if column.header in ("", "unit") else "right"
    for name, cells in rows.items():
        shown.add_row(names.get(name, name), cells["unit"], *(_number(cells[key]) for key in (*COLUMNS, *RATIOS)))
    return shown


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
