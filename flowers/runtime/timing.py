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


Measurement = Callable[[float], float]  # one measurement of at least so many seconds


def measure_interleaved(
    ways: Mapping[_Name, Measurement], rounds: Iterable[Any], seconds: float
) -> dict[_Name, list[float]]:
    """A figure of each way in each round, after one round to warm up: what disturbs the machine disturbs all alike."""
    for way in ways.values():
        way(0)
    figures: dict[_Name, list[float]] = {name: [] for name in ways}
    for _ in rounds:
        for name, way in ways.items():
            figures[name].append(way(seconds))
    return figures


def throughput(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Things a second of `work`, which does some and says how many, once or more."""
    synchronize(device)
    done, start = 0, time.perf_counter()
    while True:
        done += work()
        synchronize(device)
        if (spent := time.perf_counter() - start) >= seconds:
            return done / spent


def synchronize(device: torch.device) -> None:
    """Waits for what `device` was given to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def make_measurement(
    work: Callable[[], int], device: torch.device, threads: int | None = None, deterministic: bool = False
) -> Measurement:
    """Measures `work` with so many threads, and with torch's deterministic algorithms or its default ones."""

    def way(seconds: float) -> float:
        before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(threads or before[0])
        torch.use_deterministic_algorithms(deterministic)
        try:
            return throughput(work, seconds, device)
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])

    return way


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of the best of several matrix products; a multiplication and an addition are two."""
    small = [(1024, 1024, 1024), (2048, 2048, 2048), (12544, 1152, 256)]  # the last as in a ResNet
    shapes = small if device.type == "cpu" else [(size, size, size) for size in (4096, 8192, 16384)]
    return max(_matmul_rate(shape, device, dtype, seconds / len(shapes)) for shape in shapes)


def _matmul_rate(shape: Sequence[int], device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    m, k, n = shape
    left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)

    def work() -> int:
        for _ in range(4):  # a GPU is not to wait for the clock
            torch.mm(left, right.T, out=out)
        return 4 * 2 * m * k * n

    work()
    return throughput(work, seconds, device)


def copy_bandwidth(seconds: float) -> float:
    """Bytes a second that one process copies from memory to memory."""
    source = torch.ones(2**26, dtype=torch.uint8)  # 64 MiB, more than caches hold
    target = torch.empty_like(source).fill_(0)

    def work() -> int:
        target.copy_(source)
        return source.numel()

    return throughput(work, seconds, torch.device("cpu"))


def flops_per_image(network: nn.Module, size: int, training: bool) -> float:
    """Of a photo's forward pass through the network, or of the backward pass too; `size` in pixels a side."""
    place = next(network.parameters())
    photos = torch.zeros(2, 3, size, size, device=place.device, dtype=place.dtype)  # two: BatchNorm wants more than one
    network.train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = network(photos)
        if training:
            torch.autograd.backward(cross_entropy(logits, torch.zeros(2, dtype=torch.long, device=place.device)))
    network.zero_grad(set_to_none=True)
    return float(counter.get_total_flops() / 2)


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
