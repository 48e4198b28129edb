"""Measure the speed of this machine: `python -m flowers.benchmark --help`."""

from typing import Any

from omegaconf import DictConfig

from flowers.cli import program


def benchmark(cfg: DictConfig) -> dict[str, Any]:
    """Measure baseline, project and roofline; return the figures."""
    from flowers.benchmarks.report import run_benchmark

    return run_benchmark(cfg)


main = program(benchmark, "benchmark")

if __name__ == "__main__":
    main()
