import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flowers.evaluation.statistics import mean_interval
from flowers.runtime.text import read_csv
from flowers.training.multirun import MultirunSummary, multirun_rows


def make_run(folder: Path, name: str, overrides: list[str], accuracy: float | None, started: list[str] | None = None):
    run_dir = folder / name
    (run_dir / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), run_dir / ".hydra/overrides.yaml")
    start = {"cwd": str(folder), "overrides": overrides if started is None else started}
    OmegaConf.save(start, run_dir / "started.yaml")
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
    assert list(rows[0].values()) == ["2", ["seed=2"], 0.75, 0.1, 0.9, 0.5, 8, 3.8]
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


def summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    MultirunSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))
    return capsys.readouterr().out


def test_summary_groups_seeds_and_folds_with_mean_and_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number, (rate, fold, accuracy) in enumerate(
        [("1e-3", 0, 0.9), ("1e-3", 1, 0.8), ("1e-3", 2, 0.85), ("1e-4", 0, 0.5), ("1e-4", 1, 0.7)]
    ):
        make_run(tmp_path, str(number), ["data.folds=3", f"optimizer.lr={rate}", f"data.fold={fold}"], accuracy)
    runs, means = summary(tmp_path, capsys).split("means over seeds and folds")
    assert "best" not in runs.split("accuracy")[0]
    assert [line.split()[0] for line in runs.splitlines() if "data.fold=" in line] == ["0", "1", "2", "3", "4"]
    low, high = mean_interval([0.9, 0.8, 0.85], overlap=1 / 2)
    width = 4.302653 * 0.05 * (1 / 3 + 1 / 2) ** 0.5  # t(0.975, 2), and folds that share training images
    assert (low, high) == pytest.approx((0.85 - width, 1.0), abs=1e-5)
    best = next(line for line in means.splitlines() if "optimizer.lr=1e-3" in line)
    assert best.split() == ["optimizer.lr=1e-3", "0.8500", f"{low:.4f}", "to", f"{high:.4f}", "0.0500", "3"]


def test_summary_ranks_single_runs_without_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path, "0", ["optimizer.lr=1e-3"], 0.5)
    make_run(tmp_path, "1", ["optimizer.lr=1e-4"], 0.6)
    out = " ".join(summary(tmp_path, capsys).split())
    assert "best first" in out
    assert "means over" not in out


def test_summary_shows_and_writes_any_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    overrides = ["+a='[/b] \x1b[31m'", "=x", "data.root=a b", "c=bad\udce9"]
    make_run(tmp_path, "0", overrides, 0.5)
    out = summary(tmp_path, capsys)
    assert "[/b]" in out
    assert "\x1b" not in out
    assert read_csv(tmp_path / "runs.csv")[1][1] == " ".join(overrides)


def test_multirun_rows_takes_a_run_with_a_damaged_result_for_failed(tmp_path: Path):
    for number, text in enumerate(["", "{}", "[1]", "not json"]):
        make_run(tmp_path, str(number), [f"seed={number}"], accuracy=None)
        (tmp_path / str(number) / "result.json").write_text(text)
    assert [row["accuracy"] for row in multirun_rows(tmp_path)] == [""] * 4


def test_multirun_rows_takes_a_run_with_a_damaged_start_for_failed(tmp_path: Path):
    make_run(tmp_path, "0", ["seed=0"], accuracy=0.5)
    (tmp_path / "0" / "started.yaml").write_text("a: [", encoding="utf-8")
    assert [row["accuracy"] for row in multirun_rows(tmp_path)] == [""]
