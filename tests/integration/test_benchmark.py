import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.report import COLUMNS, predicted_rows
from benchmarks.roofline import flops_per_image
from benchmarks.speed import main
from flowers.runtime.timing import Measurement, make_measurement, measure_interleaved, summarize
from tests.helpers import SMALL, configuration

OVERRIDES = [override for override in SMALL if not override.startswith(("head.", "finetune."))]
MEASURED = [
    *("decoding", "input pipeline", "forward pass", "int8 forward pass", "head pass", "head epoch", "training step")
]
UNMEASURED = [("head epoch", "roofline"), ("int8 forward pass", "baseline"), ("int8 forward pass", "roofline")]


@pytest.fixture(scope="module")
def report(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("benchmark") / "speeds.json"
    fast = [f"data.root={painted}", "rounds=1", "seconds=0.05", "step_batch=4", "head.epochs=3", f"output={output}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
        returned = main(configuration(*OVERRIDES, *fast, "int8=true", name="speed"))
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(returned))
    return dict(written)


def test_report_has_every_row_and_column_and_the_conditions(report: dict[str, Any]):
    assert list(report["rows"]) == [*MEASURED, "head stage, 3 epochs", "report, predicted", "head_only, predicted"]
    for name, row in report["rows"].items():
        for column in COLUMNS:
            assert (row[column] is None) == ((name, column) in UNMEASURED)
            assert row[column] is None or row[column] > 0
    assert report["precision"] == "32-true"
    assert report["photos"] == {"train": 50, "val": 10, "step": 4, "forward": report["photos"]["forward"]}
    assert {"device", "versions", "git", "settings", "needed"} <= set(report)
    assert report["settings"]["rounds"] == 1


def test_report_shows_the_median_of_each_figure(report: dict[str, Any]):
    for key, spread in report["spread"].items():
        name, column = key.split(", ")
        assert spread["min"] <= spread["median"] <= spread["max"]
        if name in MEASURED:
            assert report["rows"][name][column] == spread["median"]


def test_report_predicts_from_its_own_measured_rows(report: dict[str, Any]):
    rows, settings = report["rows"], report["settings"]
    measured = {name: rows[name] for name in MEASURED}
    assert predicted_rows(measured, (50, 10), settings["head"]["epochs"], settings["predicted_runs"], 1, False) == rows


def test_summarize_takes_the_median():
    assert summarize([3.0, 1.0, 2.0, 900.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 900.0}


def test_measure_interleaved_warms_up_and_takes_turns():
    calls = []

    def measurement(name: str) -> Measurement:
        return lambda seconds: calls.append((name, seconds)) or float(len(calls))  # type: ignore[func-returns-value]

    figures = measure_interleaved({"a": measurement("a"), "b": measurement("b")}, range(2), seconds=0.5)
    assert calls == [("a", 0), ("b", 0)] + [("a", 0.5), ("b", 0.5)] * 2
    assert figures == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_flops_are_two_per_weight_and_three_times_as_many_in_training():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10), nn.Linear(10, 5))
    forward = 2 * (48 * 10 + 10 * 5)
    assert flops_per_image(network, 4, training=False) == forward
    assert flops_per_image(network, 4, training=True) == 3 * forward - 2 * 48 * 10  # images need no gradient
    assert all(parameter.grad is None for parameter in network.parameters())


def test_measurement_restores_threads_and_determinism():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    during = []

    def work() -> int:
        during.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return 1

    assert make_measurement(work, torch.device("cpu"), threads=1, deterministic=True)(0) > 0
    assert during == [(1, True)]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_benchmark_names_a_wrong_setting(painted: Path, tmp_path: Path):
    for override in ("rounds=0", "seconds=0.0", "head.epochs=0", "step_batch=1"):
        with pytest.raises(ValueError, match=f"^{override}: expected "):
            main(configuration(*OVERRIDES, f"data.root={painted}", override, name="speed"))
    with pytest.raises(ValueError, match=f"{tmp_path}/none"):
        main(configuration(*OVERRIDES, f"data.root={tmp_path}/none", name="speed"))


def test_help_names_every_row_and_column_and_a_typo_is_one_line():
    command = [sys.executable, "-m", "benchmarks.speed"]
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in help_text for name in (*MEASURED, *COLUMNS, "report", "head_only"))
    process = subprocess.run([*command, "rouns=1"], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("error: rouns")
    assert "did you mean rounds?" in process.stderr


@pytest.mark.slow
def test_peers_train_on_the_same_images(painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "peers.json"
    small = ["data.test_fraction=0.1", f"data.root={painted}", "peers=[torchvision]", "peer_epochs=[1]", "rounds=1"]
    size = '"data.image_size=32","data.resize=32"'
    ours = ["peer_experiment=null", f'peer_settings=["head.epochs=0","head.init=probe",{size}]']
    main(configuration(*OVERRIDES, *small, *ours, f"output={output}", name="speed"))
    report = json.loads(output.read_text(encoding="utf-8"))
    mine, peer = report["rows"]
    assert (mine["library"], peer["library"]) == ("flowers", "torchvision")
    assert mine["problem"] == peer["problem"] == ""
    assert not (tmp_path / "cache" / "features").exists()  # each run starts without cached features
    assert mine["test"]["n"] == peer["test"]["n"] == report["images"]["test"] > 0
    assert mine["peak_bytes"] > 10**8
    assert peer["version"].startswith("torchvision ")
    assert 0 <= peer["p"] <= 1
    with pytest.raises(ValueError, match="no such program: expected a Python that has the peers"):
        main(configuration(*OVERRIDES, *small, "peer_python=/no/python", name="speed"))
