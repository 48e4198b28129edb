"""Measure throughput in interleaved rounds."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

_Name = TypeVar("_Name")


Measurement = Callable[[float], float]  # measures for at least the given seconds, and returns the figure


def measure_interleaved(
    measurements: Mapping[_Name, Measurement], rounds: Iterable[Any], seconds: float
) -> dict[_Name, list[float]]:
    """Take all measurements in each round, so that other load on the machine affects all of them alike.

    Args:
        measurements: By name. Each runs once before the first round, to warm up.
        rounds: One item per round.
        seconds: The minimum duration of a measurement.

    Returns:
        The figures of all rounds, by name.
    """
    for measure in measurements.values():
        measure(0)
    figures: dict[_Name, list[float]] = {name: [] for name in measurements}
    for _ in rounds:
        for name, measure in measurements.items():
            figures[name].append(measure(seconds))
    return figures


def throughput(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Return the items per second of `work`, which processes some items and returns their number.

    It runs until `seconds` have passed, at least once.
    """
    synchronize(device)
    done, start = 0, time.perf_counter()
    while True:
        done += work()
        synchronize(device)
        if (spent := time.perf_counter() - start) >= seconds:
            return done / spent


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def make_measurement(
    work: Callable[[], int], device: torch.device, threads: int | None = None, deterministic: bool = False
) -> Measurement:
    """Return a measurement of the throughput of `work`.

    Args:
        work: Processes some items and returns their number.
        device: Where it runs.
        threads: The number of threads of torch; None for the present one.
        deterministic: Whether torch uses deterministic algorithms.
    """

    def measure(seconds: float) -> float:
        before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(threads or before[0])
        torch.use_deterministic_algorithms(deterministic)
        try:
            return throughput(work, seconds, device)
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])

    return measure


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the minimum and the maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
