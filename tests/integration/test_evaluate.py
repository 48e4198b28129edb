import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowers.evaluate import main
from flowers.evaluation.metrics import compute_metrics
from flowers.evaluation.predictions import Predictions, load_predictions
from flowers.evaluation.report import write_report
from flowers.models.classifier import read_checkpoint
from flowers.runtime.files import read_json
from flowers.runtime.run_folder import BEST_CHECKPOINT
from tests.helpers import configuration


def evaluated(*overrides: str) -> float:
    return float(main(configuration(*overrides, name="evaluate")))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_gives_exactly_what_training_reported(trained: Path, tmp_path: Path, split: str):
    reported = read_json(trained / "result.json")[split]
    assert evaluated(f"run={trained}", f"split={split}", f"output={tmp_path}/scores.json") == reported["accuracy"]
    scored = read_json(tmp_path / "scores.json")[split]
    assert {name: scored[name] for name in reported} == reported


def test_the_program_prints_the_score_and_leaves_nothing_behind(trained: Path, tmp_path: Path):
    command = [sys.executable, "-m", "flowers.evaluate", f"run={trained}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{read_json(trained / 'result.json')['val']['accuracy']:.6f}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_page_says_it_all_needs_nothing_else_and_escapes_what_it_is_given(trained: Path, tmp_path: Path):
    evaluated(f"run={trained}", f"report={tmp_path}/a")
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    val = read_json(trained / "result.json")["val"]
    assert f"{100 * val['accuracy']:.2f} %" in page
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?\s*(?!data:)[a-z]+:", page)
    with (tmp_path / "a" / "mistakes.csv").open(encoding="utf-8") as file:
        mistakes = list(csv.DictReader(file))
    assert len(mistakes) == val["n"] - round(val["accuracy"] * val["n"])
    assert all(row["true"] != row["predicted"] for row in mistakes)

    said = load_predictions(trained / "predictions" / "val.csv")
    classes = ["<script>alert(1)</script>", *said.classes[1:]]
    stranger = Predictions(said.paths, said.labels, said.logits, classes)
    config = read_checkpoint(trained / BEST_CHECKPOINT)["hyper_parameters"]["config"]
    page_path = tmp_path / "b.html"
    write_report(page_path, tmp_path, config, "x", tmp_path, stranger, compute_metrics(stranger))
    assert "<script" not in page_path.read_text(encoding="utf-8")


def test_other_photos_are_scored_whole_also_by_a_checkpoint_alone(trained: Path, painted: Path, tmp_path: Path):
    alone = tmp_path / "alone.ckpt"
    shutil.copy(trained / BEST_CHECKPOINT, alone)
    evaluated(f"run={alone}", f"photos={painted}", f"output={tmp_path}/scores.json")
    (scored,) = read_json(tmp_path / "scores.json").values()
    assert scored["n"] == 60
    with pytest.raises(ValueError, match=r"lies in no run folder.*photos=FOLDER"):
        evaluated(f"run={alone}")


def test_photos_of_other_classes_are_refused(trained: Path, folder: Path):
    with pytest.raises(ValueError, match=r"lily, orchid: expected only classes of the model: daisy"):
        evaluated(f"run={trained}", f"photos={folder}")


def test_what_is_no_run_and_no_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Give run=FOLDER"):
        evaluated()
    with pytest.raises(ValueError, match=r"split=vall: wanted .*did you mean val"):
        evaluated(f"run={tmp_path}", "split=vall")
    with pytest.raises(ValueError, match=r"no run there"):
        evaluated(f"run={tmp_path}")
    with pytest.raises(ValueError, match=r"no run there"):
        evaluated(f"run={tmp_path}/missing.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"not a checkpoint of flowers"):
        evaluated(f"run={tmp_path}/other.ckpt")


def test_a_split_that_was_changed_since_is_refused(trained: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    lines = (run / "split.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "split.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not the split"):
        evaluated(f"run={run}")
