import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers.data.splits import load_split
from flowers.evaluate import main
from flowers.evaluation.metrics import METRICS, compute_metrics
from flowers.evaluation.report import write_report
from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.predictions import Predictions, load_predictions
from flowers.runs.run_folder import BEST_CHECKPOINT
from flowers.runtime.files import read_json
from tests.helpers import configuration, program_here


def evaluate(*overrides: str) -> float:
    return float(main(configuration(*overrides, name="evaluate")))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_repeats_the_scores_of_training_exactly(trained: Path, tmp_path: Path, split: str):
    reported = read_json(trained / "result.json")[split]
    assert evaluate(f"run={trained}", f"split={split}", f"output={tmp_path}/scores.json") == reported["accuracy"]
    scores = read_json(tmp_path / "scores.json")[split]
    assert {name: scores[name] for name in reported} == reported


def test_evaluate_prints_the_accuracy_and_leaves_no_file_in_the_working_directory(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    process = program_here(f"run={trained}", name="evaluate")
    assert (process.returncode, process.stderr) == (0, "")
    assert f"{read_json(trained / 'result.json')['val']['accuracy']:.6f}" in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_report_needs_no_other_file_and_escapes_class_names(trained: Path, tmp_path: Path):
    evaluate(f"run={trained}", f"report={tmp_path}/a")
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    val = read_json(trained / "result.json")["val"]
    assert f"{100 * val['accuracy']:.2f} %" in page
    assert page.count("<svg") == 4
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?\s*(?!data:)[a-z]+:", page)
    with (tmp_path / "a" / "mistakes.csv").open(encoding="utf-8") as file:
        mistakes = list(csv.DictReader(file))
    assert len(mistakes) == val["n"] - round(val["accuracy"] * val["n"])
    assert all(row["true"] != row["predicted"] for row in mistakes)

    predictions = load_predictions(trained / "predictions" / "val.csv")
    classes = ["<script>alert(1)</script>", *predictions.classes[1:]]
    hostile = Predictions(predictions.paths, predictions.labels, predictions.logits, classes)
    config = read_checkpoint(trained / BEST_CHECKPOINT)["hyper_parameters"]["config"]
    page_path = tmp_path / "b.html"
    write_report(page_path, tmp_path, config, "x", tmp_path, hostile, compute_metrics(hostile))
    assert "<script" not in page_path.read_text(encoding="utf-8")


def test_evaluate_measures_the_rejection_of_strangers(rejecting: Path, folder: Path, tmp_path: Path):
    evaluate(f"run={rejecting}", f"strangers={folder}", f"output={tmp_path}/a.json", f"report={tmp_path}")
    scores = read_json(tmp_path / "a.json")["val"]["rejection"]
    assert scores["reject"] == 0.2
    assert 0 <= scores["auroc"]["interval"][0] <= scores["auroc"]["value"] <= 1
    assert scores["rejected_strangers"]["n"] == 20
    assert "None of these" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no such folder"):
        evaluate(f"run={rejecting}", "strangers=nowhere")
    with pytest.raises(ValueError, match=r"reject=0\.05: expected at least 0\.0\d+ with 10 validation images"):
        evaluate(f"run={rejecting}", "reject=0.05")


def test_evaluate_scores_another_folder_with_a_checkpoint_alone(trained: Path, painted: Path, tmp_path: Path):
    alone = tmp_path / "alone.ckpt"
    shutil.copy(trained / BEST_CHECKPOINT, alone)
    evaluate(f"run={alone}", f"photos={painted}", f"output={tmp_path}/scores.json")
    (scores,) = read_json(tmp_path / "scores.json").values()
    assert scores["n"] == 60
    with pytest.raises(ValueError, match=r"is not in a run folder.*photos=FOLDER"):
        evaluate(f"run={alone}")


def test_evaluate_says_how_many_photos_the_run_was_trained_on(
    trained: Path, painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    evaluate(f"run={trained}", f"photos={painted}", f"output={tmp_path}/scores.json")
    (scores,) = json.loads((tmp_path / "scores.json").read_text()).values()
    known = [record for record in load_split(trained / "split.csv") if record.split == "train"]
    assert scores["trained_on"] == len(known) > 0
    assert (
        f"{len(known)} of the {scores['n']} photos are among those that the run was trained on"
        in capsys.readouterr().out
    )


def test_evaluate_reads_folders_that_are_laid_out_otherwise(trained: Path, painted: Path, tmp_path: Path):
    for part in ("color", "grey"):
        shutil.copytree(painted, tmp_path / "photos" / part)
    with pytest.raises(ValueError, match=r"data\.layout=subfolders for the latter \(without data\. in evaluate"):
        evaluate(f"run={trained}", f"photos={tmp_path / 'photos'}")
    evaluate(f"run={trained}", f"photos={tmp_path / 'photos'}", "layout=subfolders", f"output={tmp_path}/scores.json")
    (scores,) = json.loads((tmp_path / "scores.json").read_text()).values()
    assert scores["n"] == 2 * len([*painted.glob("*/*")])
    with pytest.raises(ValueError, match=r"^layout without photos=FOLDER"):
        evaluate(f"run={trained}", "layout=subfolders")


def test_evaluate_refuses_images_of_unknown_classes(trained: Path, folder: Path):
    with pytest.raises(ValueError, match=r"lily, orchid: expected only classes of the model: daisy"):
        evaluate(f"run={trained}", f"photos={folder}")


def test_evaluate_names_what_is_wrong(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Give run=FOLDER"):
        evaluate()
    with pytest.raises(ValueError, match=r"split=vall: expected .*did you mean val"):
        evaluate(f"run={tmp_path}", "split=vall")
    with pytest.raises(ValueError, match=r"no run there"):
        evaluate(f"run={tmp_path}")
    with pytest.raises(ValueError, match=r"no run there"):
        evaluate(f"run={tmp_path}/missing.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"not a checkpoint of flowers"):
        evaluate(f"run={tmp_path}/other.ckpt")


def test_evaluate_refuses_a_split_that_has_changed(trained: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    lines = (run / "split.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "split.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not the split"):
        evaluate(f"run={run}")


def test_report_and_tensorboard_show_every_metric(trained: Path, tmp_path: Path):
    evaluate(f"run={trained}", f"report={tmp_path}")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(metric.label in page for metric in METRICS)
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert {f"val_best/{metric.name}" for metric in METRICS} <= set(events.Tags()["scalars"])
