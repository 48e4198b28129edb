"""Measure the speed of this machine, or compare with other libraries: `python -m benchmarks.speed --help`."""

from typing import Any

from omegaconf import DictConfig

from benchmarks import settings as settings  # adds the program
from flowers.cli import program


def speed(cfg: DictConfig) -> dict[str, Any]:
    """Measure baseline, project and roofline, or a GPU, or train flowers and `cfg.peers`; return the figures."""
    if cfg.gpu:
        from benchmarks.gpu import run_gpu_benchmark

        return run_gpu_benchmark(cfg)
    if cfg.peers:
        from benchmarks.peer_table import run_peers

        return run_peers(cfg)
    from benchmarks.report import run_benchmark

    return run_benchmark(cfg)


main = program(speed, "speed")

if __name__ == "__main__":
    main()
