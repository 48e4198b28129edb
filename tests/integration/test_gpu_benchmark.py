"""The script that measures a GPU, in its small mode."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu import ROWS_FILE, TABLE_FILE, Case, Worker, list_cases, markdown_table
from benchmarks.speed import main
from tests.helpers import SMALL, configuration

OVERRIDES = [override for override in SMALL if not override.startswith(("head.", "finetune."))]


def test_gpu_is_refused_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    overrides = [*OVERRIDES, "data.root=x", f"output={tmp_path / 'new'}"]
    with pytest.raises(ValueError, match=r"gpu=all: no GPU found on this machine: expected one, or gpu=small"):
        main(configuration(*overrides, "gpu=all", name="speed"))
    assert not (tmp_path / "new").exists()


def test_all_cases_name_what_the_docs_want_measured(tmp_path: Path):
    names = [case.name for case in list_cases(configuration("gpu=all", name="speed"), tmp_path, "cuda")]
    assert len(set(names)) == len(names) == 16 + 8 + 3
    assert {"train resnet152, batch 256, compiled", "infer resnet50, batch 256, exported", "decode, nvJPEG"} <= {*names}


def test_a_measurement_that_fails_or_takes_too_long_is_a_row_with_its_reason(tmp_path: Path):
    worker = Worker()
    failed = worker.measure(Case("a", "decode", {"root": str(tmp_path), "device": "cpu"}, 60), 60)
    assert failed["problem"] == f"ValueError: no JPEG files in the folders of {tmp_path}"
    training = {"model": "resnet18", "batch": 4, "image_size": 32, "device": "cpu", "way": "plain"}
    slow = worker.measure(Case("b", "train", training, 0), 0)
    assert slow["problem"] == "took longer than 0 s"
    assert "| b | not measured: took longer than 0 s |" in markdown_table({"b": slow}, "a CPU")
    worker.stop()


@pytest.mark.faults
def test_small_mode_measures_everything_on_the_cpu(painted: Path, tmp_path: Path):
    start = time.monotonic()
    overrides = [*OVERRIDES, f"data.root={painted}", f"output={tmp_path / 'gpu'}", "gpu=small"]
    rows = main(configuration(*overrides, name="speed"))
    written = [json.loads(line) for line in (tmp_path / "gpu" / ROWS_FILE).read_text(encoding="utf-8").splitlines()]
    assert [row["name"] for row in written] == list(rows)
    assert {name for name, row in rows.items() if "problem" in row} <= {"decode, nvJPEG"}
    assert rows["experiment=report, start to exit"]["seconds"] < time.monotonic() - start
    table = (tmp_path / "gpu" / TABLE_FILE).read_text(encoding="utf-8")
    assert all(f"| {name} | " in table for name in rows)
    with pytest.raises(ValueError, match="holds an earlier measurement"):
        main(configuration(*overrides, name="speed"))
