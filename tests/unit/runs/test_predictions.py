from pathlib import Path

import pytest
import torch

from flowers.runs.predictions import Predictions, load_predictions, load_run_predictions
from flowers.runtime.text import read_csv


def test_load_predictions_returns_what_save_wrote_to_the_bit(tmp_path: Path):
    logits = torch.randn(3, 2, dtype=torch.float64) * 1e-3
    paths = ["a/1.png", 'a/"2",\r\n.png', "=b/ü\udce9.png"]
    predictions = Predictions(paths, torch.tensor([0, 0, 1]), logits, ["a", "-b, \x1bc\r"])
    predictions.save(tmp_path / "val.csv")
    loaded = load_predictions(tmp_path / "val.csv")
    assert (list(loaded.paths), list(loaded.classes)) == (list(predictions.paths), list(predictions.classes))
    assert torch.equal(loaded.logits, predictions.logits)
    assert torch.equal(loaded.labels, predictions.labels)


@pytest.mark.parametrize("names", [["path", "true"], ["class", "probability"], ["logit", "logit_a"], ["abstain", "a"]])
def test_predictions_have_a_column_of_its_own_for_each_class(tmp_path: Path, names: list[str]):
    Predictions(["1.jpg"], torch.tensor([1]), torch.ones(1, 2, dtype=torch.float64), names).save(tmp_path / "val.csv")
    header = read_csv(tmp_path / "val.csv")[0]
    assert header == ["path", "true", *(f"logit_{name}" for name in names)]
    assert load_predictions(tmp_path / "val.csv").classes == names


def test_load_predictions_reads_the_columns_of_older_runs(tmp_path: Path):
    (tmp_path / "val.csv").write_text("path,true,path,logit_a\nx,path,1,2\n")
    assert load_predictions(tmp_path / "val.csv").classes == ["path", "logit_a"]


@pytest.mark.parametrize(
    "text",
    [None, "", "path,true,a\nx,b,1\n", "path,true,a\nx,a,one\n", "path,true,a\nx,a,1,2\n", "path,true,a,a\nx,a,1,2\n"],
)
def test_load_predictions_refuses_a_missing_file_and_other_content(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=r"val\.csv cannot be read"):
        load_predictions(tmp_path / "val.csv")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,true,a,b\nx,a,1,2\nx,a,1\n", "line 3: expected a path, one of the classes, and 2 logits"),
        ("path,true" + ",a" * 9 + "\n" + "x,a,1\n" * 9, "expected a CSV file of predictions"),
        ("path,true,a,b\nx,a,1,2\nx,b,nan,1\n", "line 3: expected finite logits"),
        ("path,true,a,b\nx,a,1,inf\n", "line 2: expected finite logits"),
        ("path,true,,b\nx,b,1,2\n", "expected a CSV file of predictions"),
        ("name,true,a,b\nx,b,1,2\n", "expected a CSV file of predictions"),
    ],
)
def test_load_predictions_says_which_line_is_wrong(tmp_path: Path, text: str, reason: str):
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"val\.csv cannot be read: {reason}"):
        load_predictions(tmp_path / "val.csv")


def test_load_run_predictions_names_the_missing_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no predictions/test\.csv: .*another split"):
        load_run_predictions(tmp_path, "test")
