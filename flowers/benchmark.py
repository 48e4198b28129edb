"""Measure the speed of this machine, or compare with other libraries: `python -m flowers.benchmark --help`."""

from typing import Any

from omegaconf import DictConfig

from flowers.cli import program


def benchmark(cfg: DictConfig) -> dict[str, Any]:
    """Measure baseline, project and roofline, or a GPU, or train flowers and `cfg.peers`; return the figures."""
    if cfg.gpu:
        from flowers.benchmarks.gpu import run_gpu_benchmark

        return run_gpu_benchmark(cfg)
    if cfg.peers:
        from flowers.benchmarks.peer_table import run_peers

        return run_peers(cfg)
    from flowers.benchmarks.report import run_benchmark

    return run_benchmark(cfg)


main = program(benchmark, "benchmark")

if __name__ == "__main__":
    main()
