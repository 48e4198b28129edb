"""Measure the speed of this machine, or compare with other libraries: `python -m benchmarks.speed --help`."""

from typing import Any

from benchmarks.settings import Speed
from flowers.cli import program


def speed(settings: Speed) -> dict[str, Any]:
    """Measure baseline, project and roofline, or a GPU, or train flowers and `settings.peers`; return the figures."""
    if settings.gpu:
        from benchmarks.gpu import run_gpu_benchmark

        return run_gpu_benchmark(settings)
    if settings.peers:
        from benchmarks.peer_table import run_peers

        return run_peers(settings)
    from benchmarks.report import run_benchmark

    return run_benchmark(settings)


main = program(speed, Speed)

if __name__ == "__main__":
    main()
