import csv
import json
import shutil
from pathlib import Path

import pytest

from flowers.evaluation.predictions import load_predictions
from flowers.predict import main
from flowers.runtime.run_folder import BEST_CHECKPOINT
from tests.helpers import configuration


def predict(*overrides: str) -> int:
    return int(main(configuration(*overrides, "accelerator=cpu", "precision=32-true", name="predict")))


@pytest.fixture
def mixed(painted: Path, tmp_path: Path) -> Path:
    """A folder of three images, a text named .jpg, a truncated image, an empty file and a hidden one."""
    (tmp_path / "mixed" / "below").mkdir(parents=True)
    for index, path in enumerate(sorted(painted.glob("*/*.*"))[:3]):
        shutil.copy(path, tmp_path / "mixed" / "below" / f"{index}{path.suffix}")
    content = path.read_bytes()
    (tmp_path / "mixed" / f"cut{path.suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "mixed" / "text.jpg").write_text("not an image")
    (tmp_path / "mixed" / "empty.png").touch()
    (tmp_path / "mixed" / ".hidden").touch()
    return tmp_path / "mixed"


@pytest.mark.parametrize("workers", [0, 2])
def test_predict_writes_a_row_per_file_with_a_reason_for_each_bad_one(
    trained: Path, mixed: Path, tmp_path: Path, workers: int
):
    output = tmp_path / "answers.csv"
    assert predict(f"run={trained}", f"photos={mixed}", f"output={output}", f"num_workers={workers}") == 3
    with output.open(encoding="utf-8") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert "JPEG" in rows["text.jpg"]["reason"]
    assert all(rows[name]["reason"] and not rows[name]["class"] for name in rows if name[0] not in "012")
    good = next(row for name, row in rows.items() if name.startswith("0"))
    classes = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert float(good["probability"]) == max(float(good[name]) for name in classes) == float(good[good["class"]])
    assert sum(float(good[name]) for name in classes) == pytest.approx(1, abs=1e-5)


def test_predict_writes_the_same_to_json_as_to_csv_and_abstains_below_the_confidence(
    trained: Path, mixed: Path, tmp_path: Path
):
    for output in ("a.csv", "a.json"):
        predict(f"run={trained}", f"photos={mixed}/below", f"output={tmp_path / output}", "confidence=1")
    rows = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        for row, csv_row in zip(rows, csv.DictReader(file), strict=True):
            assert (row["path"], row["class"]) == (csv_row["path"], csv_row["class"])
            assert row["abstain"] is (row["probability"] < 1)
            assert csv_row["abstain"] == str(row["abstain"]).lower()


def test_predict_prints_a_table_without_an_output(trained: Path, mixed: Path, capsys: pytest.CaptureFixture[str]):
    assert predict(f"run={trained}", f"photos=[{mixed}/below,{mixed}/text.jpg]") == 3
    table = capsys.readouterr().out
    assert "probability" in table
    assert "not a JPEG" in table


def test_predict_agrees_with_the_predictions_of_the_run(trained: Path, painted: Path, tmp_path: Path):
    expected = load_predictions(trained / "predictions" / "val.csv")
    paths = ",".join(str(painted / path) for path in expected.paths)
    predict(f"run={trained / BEST_CHECKPOINT}", f"photos=[{paths}]", f"output={tmp_path}/a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        labels = [row["class"] for row in csv.DictReader(file)]
    assert labels == [expected.classes[index] for index in expected.predicted.tolist()]


def test_predict_names_what_is_wrong(trained: Path, mixed: Path):
    for overrides, message in (
        ([f"photos={mixed}"], "run="),
        ([f"run={trained}"], "photos="),
        ([f"run={trained}", f"photos={mixed}/nowhere"], f"photos={mixed}/nowhere"),
        ([f"run={trained}", f"photos={mixed}", "output=a.xml"], r"output=a\.xml: expected .*\.csv or \.json"),
        ([f"run={trained}", f"photos={mixed}", "confidence=80"], "confidence=80: expected a probability from 0 to 1"),
        ([f"run={mixed}", f"photos={mixed}"], f"run={mixed}"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(*overrides)
