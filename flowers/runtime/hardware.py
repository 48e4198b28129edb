"""Accelerators, precision, memory and cores of this machine."""

import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def resolve_trainer_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings with each "auto" of accelerator, precision and deterministic made definite.

    Precision becomes bf16 mixed only where the hardware computes bf16 natively; deterministic is true on a CPU, where
    it costs nothing.
    """
    definite = dict(settings)
    if definite["accelerator"] == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        definite["accelerator"] = "cpu" if found is None else found.type
    if not torch.cuda.is_available():  # else Adam asks NVML before each step, by Lightning's setting of this
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    if definite["precision"] == "auto":
        definite["precision"] = "bf16-mixed" if has_native_bf16(definite["accelerator"]) else "32-true"
    if definite["deterministic"] == "auto":
        definite["deterministic"] = definite["accelerator"] == "cpu"
    return definite


def available_cores() -> int:
    """Of the processor, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(accelerator: str) -> torch.device:
    """The one device of an accelerator by Lightning's name for it: "cpu", "gpu", "cuda", "mps".

    Raises ValueError where there is none.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu":
        return torch.device("cpu")
    if found is None or accelerator not in ("gpu", found.type):
        there = "cpu" if found is None else f"cpu, gpu, {found.type}"
        raise ValueError(f"accelerator={accelerator}: not on this machine, which has {there}")
    return found


def has_native_bf16(accelerator: str) -> bool:
    """Whether bf16 is computed natively and not emulated."""
    if accelerator in ("cuda", "gpu"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator == "cpu" and torch.cpu._is_avx512_bf16_supported()


def device_name(device: torch.device) -> str:
    """The device's model, such as "NVIDIA H100" or "x86_64 CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"


def peak_memory_bytes(device: torch.device) -> int:
    """Bytes held at the worst moment so far: on a GPU there, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory() -> int:
    """Bytes that processes here can still take without swapping, also within a container's limit; 0 where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
    return max(free, 0)
