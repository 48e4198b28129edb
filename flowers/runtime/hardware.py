"""Devices, precision, memory and CPU cores of this machine."""

import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_CPU_PROCESSES = 8  # also on fewer cores


def resolve_trainer_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer settings with each "auto" of accelerator, precision and deterministic resolved.

    Precision becomes bf16-mixed only where the hardware computes bf16 natively. Deterministic becomes true on a CPU,
    where it costs little.
    """
    resolved = dict(settings)
    if resolved["accelerator"] == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        resolved["accelerator"] = "cpu" if found is None else found.type
    if not torch.cuda.is_available():  # Lightning sets it to 1, and Adam then queries NVML before each step
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    if resolved["precision"] == "auto":
        resolved["precision"] = "bf16-mixed" if has_native_bf16(resolved["accelerator"]) else "32-true"
    if resolved["deterministic"] == "auto":
        resolved["deterministic"] = resolved["accelerator"] == "cpu"
    # Deterministic mode also fills new memory with NaN, to expose reads of it, which costs a pass over all activations.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return resolved


def resolve_device_and_precision(accelerator: str | None, precision: str | None) -> tuple[torch.device, str]:
    """Return the device and the precision that two of Lightning's names mean here; None is "auto".

    Raises:
        ValueError: This machine has no such device.
    """
    asked = {"accelerator": accelerator or "auto", "precision": precision or "auto", "deterministic": False}
    resolved = resolve_trainer_config(asked)
    return resolve_device(resolved["accelerator"]), str(resolved["precision"])


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(accelerator: str, key: str = "accelerator") -> torch.device:
    """Return the device for one of Lightning's accelerator names, such as "cpu", "gpu", "cuda" or "mps".

    Args:
        accelerator: The name.
        key: The setting that it comes from, for messages.

    Raises:
        ValueError: This machine has no such device.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or accelerator not in ("gpu", found.type):
        names = "cpu" if found is None else f"cpu, gpu, {found.type}"
        raise ValueError(f"{key}={accelerator}: not on this machine: expected auto, {names}")
    return found


def check_devices(accelerator: str, devices: int | str | Sequence[int] = 1, key: str = "trainer.accelerator") -> None:
    """Check that this machine has the devices that `trainer.accelerator` and `trainer.devices` name.

    Args:
        accelerator: Lightning's name, or "auto".
        devices: As Lightning takes it: a count, -1 or "auto" for all, or a list of indices ("0,1" or [0, 1]). On a CPU
            it is a number of processes: at most one per core, or eight to try something.
        key: See `resolve_device`.

    Raises:
        ValueError: There is no such device, or there are fewer.
    """
    if accelerator == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        accelerator = "cpu" if found is None else found.type
    if resolve_device(accelerator, key).type == "cpu":
        most = max(available_cores(), _CPU_PROCESSES)
        if _required_count(devices) > most:
            raise ValueError(f"trainer.devices={devices}: expected at most {most} processes on this machine's CPU")
        return
    count = torch.accelerator.device_count()
    if _required_count(devices) > count:
        expected = f"at most {count}" if _is_count(devices) else f"indices from 0 to {count - 1}"
        raise ValueError(f"trainer.devices={devices}: expected {expected}, the {accelerator} devices of this machine")


def _is_count(devices: int | str | Sequence[int]) -> bool:
    return isinstance(devices, int) or (isinstance(devices, str) and "," not in devices)


def _required_count(devices: int | str | Sequence[int]) -> int:
    """Return how many devices there must be; at most 0 if all are requested, however many there are."""
    values = [devices] if isinstance(devices, int) else devices.split(",") if isinstance(devices, str) else devices
    numbers = [int(value) for value in values if str(value).strip().lstrip("-").isdigit()]
    return max(numbers, default=0) + (0 if _is_count(devices) else 1)


def has_native_bf16(accelerator: str) -> bool:
    """Return whether the accelerator computes bf16 natively rather than by emulation."""
    if accelerator in ("cuda", "gpu"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last one on ARM


def has_int8_instructions() -> bool:
    """Return whether the CPU multiplies and adds 8-bit integers in one instruction: VNNI or AMX on x86."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def device_name(device: torch.device) -> str:
    """Return the device's model, such as "NVIDIA H100" or "x86_64 CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{platform.machine()} {device.type.upper()}, {count} thread{'s' * (count != 1)}"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes so far: of the GPU, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory() -> int:
    """Return how many bytes processes can still allocate without swapping, within a container's limit; 0 if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            remaining = int(Path(limit).read_text(encoding="ascii")) - int(Path(usage).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
        available = min(available, remaining)
    return max(available, 0)
