from typing import Any

import pytest
import torch

from flowers.runtime.hardware import (
    available_cores,
    available_memory,
    check_devices,
    device_name,
    has_native_bf16,
    peak_memory_bytes,
    resolve_device,
    resolve_trainer_config,
)

CPU = torch.device("cpu")


def set_accelerator(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 1) -> None:
    device = None if kind is None else torch.device(kind)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: device)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: count)


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "bf16"])
@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_resolve_trainer_config_picks_bf16_where_it_is_native(
    capability: str, native: bool, precision: str, monkeypatch: pytest.MonkeyPatch
):
    set_accelerator(monkeypatch, None)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {capability: native})
    resolved = resolve_trainer_config({"accelerator": "auto", "precision": "auto", "deterministic": "auto"})
    assert resolved == {"accelerator": "cpu", "precision": precision, "deterministic": True}


def test_resolve_trainer_config_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch):
    set_accelerator(monkeypatch, "cuda")
    settings = {"accelerator": "cpu", "precision": "16-mixed", "deterministic": False, "devices": 2}
    assert resolve_trainer_config(settings) == settings
    resolved = resolve_trainer_config(settings | {"accelerator": "auto", "deterministic": "auto"})
    assert (resolved["accelerator"], resolved["deterministic"]) == ("cuda", False)


def test_get_capabilities_names_bf16_as_expected():
    found = torch.cpu.get_capabilities()
    names = {"x86_64": {"avx512_bf16", "amx_bf16"}, "aarch64": {"bf16"}}.get(found["architecture"], set())
    assert names <= found.keys(), f"torch {torch.__version__} renamed a capability that has_native_bf16 reads"
    assert not has_native_bf16("mps")


@pytest.mark.parametrize(
    ("kind", "accelerator", "expected"),
    [
        (None, "cpu", "cpu"),
        ("cuda", "cpu", "cpu"),
        ("cuda", "gpu", "cuda"),
        ("cuda", "cuda", "cuda"),
        ("mps", "gpu", "mps"),
    ],
)
def test_resolve_device_takes_lightnings_names(
    kind: str | None, accelerator: str, expected: str, monkeypatch: pytest.MonkeyPatch
):
    set_accelerator(monkeypatch, kind)
    assert resolve_device(accelerator).type == expected


@pytest.mark.parametrize(
    ("kind", "accelerator", "names"),
    [
        (None, "gpu", "auto, cpu"),
        (None, "cuda", "auto, cpu"),
        (None, "tpu", "auto, cpu"),
        ("cuda", "mps", "auto, cpu, gpu, cuda"),
        ("mps", "cuda", "auto, cpu, gpu, mps"),
    ],
)
def test_check_devices_names_the_accelerators_of_this_machine(
    kind: str | None, accelerator: str, names: str, monkeypatch: pytest.MonkeyPatch
):
    set_accelerator(monkeypatch, kind)
    with pytest.raises(ValueError, match=f"accelerator={accelerator}: not on this machine: expected {names}$"):
        check_devices(accelerator)


@pytest.mark.parametrize("devices", [1, 2, -1, "2", "-1", "auto", "0,1", "0,", [0], [1]])
def test_check_devices_accepts_what_is_there(devices: Any, monkeypatch: pytest.MonkeyPatch):
    set_accelerator(monkeypatch, "cuda", 2)
    for accelerator in ("auto", "gpu", "cuda"):
        check_devices(accelerator, devices)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [(3, "at most 2"), ("3", "at most 2"), ([2], "indices from 0 to 1"), ("0,2", "indices from 0 to 1")],
)
def test_check_devices_refuses_more_than_there_are(devices: Any, expected: str, monkeypatch: pytest.MonkeyPatch):
    set_accelerator(monkeypatch, "cuda", 2)
    with pytest.raises(ValueError, match=rf"trainer.devices=.*: expected {expected}, the gpu devices of this machine"):
        check_devices("gpu", devices)


def test_check_devices_bounds_the_cpu_processes(monkeypatch: pytest.MonkeyPatch):
    set_accelerator(monkeypatch, None)
    monkeypatch.setattr("flowers.runtime.hardware.available_cores", lambda: 2)
    check_devices("cpu", 8)
    with pytest.raises(ValueError, match=r"trainer\.devices=99: expected at most 8 processes on this machine's CPU"):
        check_devices("auto", 99)


@pytest.mark.parametrize(("count", "text"), [(1, "1 thread"), (2, "2 threads")])
def test_the_cpu_is_described_in_plain_units(count: int, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert device_name(CPU).endswith(f"CPU, {text}")
    assert available_cores() >= 1
    assert peak_memory_bytes(CPU) > 2**20
    assert available_memory() >= 0
