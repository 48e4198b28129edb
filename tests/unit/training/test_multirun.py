import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flowers.training.multirun import MultirunSummary, multirun_rows


def make_run(folder: Path, name: str, overrides: list[str], accuracy: float | None, started: list[str] | None = None):
    run_dir = folder / name
    (run_dir / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), run_dir / ".hydra/overrides.yaml")
    OmegaConf.save({"overrides": overrides if started is None else started}, run_dir / "started.yaml")
    if accuracy is not None:
        val = {"accuracy": accuracy, "interval": [0.1, 0.9], "loss": 0.5, "n": 8}
        result = {"val": val, "cost": {"seconds": {"head": 1.25, "finetune": 2.5}}}
        (run_dir / "result.json").write_text(json.dumps(result), encoding="utf-8")


def test_multirun_rows_lists_the_best_run_first_and_failed_runs_last(tmp_path: Path):
    make_run(tmp_path, "0", ["seed=0"], accuracy=None)
    make_run(tmp_path, "1", ["seed=1"], accuracy=0.5)
    make_run(tmp_path, "2", ["seed=2"], accuracy=0.75)
    rows = multirun_rows(tmp_path)
    assert [row["run"] for row in rows] == ["2", "1", "0"]
    assert list(rows[0].values()) == ["2", "seed=2", 0.75, 0.1, 0.9, 0.5, 8, 3.8]
    assert rows[2]["accuracy"] == ""


def test_multirun_rows_ignores_the_result_of_an_earlier_run_in_the_folder(tmp_path: Path):
    make_run(tmp_path, "0", ["seed=0"], accuracy=0.5, started=["seed=9"])
    assert multirun_rows(tmp_path)[0]["accuracy"] == ""


def test_summary_writes_the_table_and_exits_if_a_run_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit, match="no run found"):
        MultirunSummary().on_multirun_end(config)
    make_run(tmp_path, "0", ["seed=0", "lr=1"], accuracy=0.5)
    MultirunSummary().on_multirun_end(config)
    make_run(tmp_path, "1", ["seed=1", "lr=1"], accuracy=None)
    with pytest.raises(SystemExit, match=r"1 of 2 runs failed: .*/ 1$"):
        MultirunSummary().on_multirun_end(config)
    assert [row["run"] for row in csv.DictReader((tmp_path / "runs.csv").read_text(encoding="utf-8").splitlines())] == [
        "0",
        "1",
    ]
    assert "lr=1" not in capsys.readouterr().out.split("2 runs")[1]
