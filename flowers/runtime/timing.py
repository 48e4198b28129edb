"""Measure throughput in interleaved rounds, and the hardware's peak rates."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

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


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Return the highest FLOP/s of several matrix products; a multiply-add counts as two."""
    small = [(1024, 1024, 1024), (2048, 2048, 2048), (12544, 1152, 256)]  # the last one is from a ResNet
    shapes = small if device.type == "cpu" else [(size, size, size) for size in (4096, 8192, 16384)]
    return max(_matmul_rate(shape, device, dtype, seconds / len(shapes)) for shape in shapes)


def _matmul_rate(shape: Sequence[int], device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    m, k, n = shape
    left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)

    def work() -> int:
        for _ in range(4):  # keeps a GPU busy between two looks at the clock
            torch.mm(left, right.T, out=out)
        return 4 * 2 * m * k * n

    work()
    return throughput(work, seconds, device)


def copy_bandwidth(seconds: float) -> float:
    """Return the bytes per second that one process copies in memory."""
    source = torch.ones(2**26, dtype=torch.uint8)  # 64 MiB: larger than the caches
    target = torch.empty_like(source).fill_(0)

    def work() -> int:
        target.copy_(source)
        return source.numel()

    return throughput(work, seconds, torch.device("cpu"))


def flops_per_image(network: nn.Module, size: int, training: bool) -> float:
    """Return the FLOPs of one image through a network.

    Args:
        network: The network.
        size: Side of the image in pixels.
        training: Whether to count the backward pass too.
    """
    parameter = next(network.parameters())
    images = torch.zeros(2, 3, size, size, device=parameter.device, dtype=parameter.dtype)  # BatchNorm needs two
    network.train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = network(images)
        if training:
            torch.autograd.backward(cross_entropy(logits, torch.zeros(2, dtype=torch.long, device=parameter.device)))
    network.zero_grad(set_to_none=True)
    return float(counter.get_total_flops() / 2)


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the minimum and the maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
