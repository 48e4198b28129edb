import csv
import json
import shutil
from pathlib import Path

import pytest

from flowers.evaluation.predictions import load_predictions
from flowers.predict import main
from flowers.runtime.run_folder import BEST_CHECKPOINT
from tests.helpers import configuration


def predicted(*overrides: str) -> int:
    return int(main(configuration(*overrides, "accelerator=cpu", "precision=32-true", name="predict")))


@pytest.fixture
def mixed(painted: Path, tmp_path: Path) -> Path:
    """A folder of three photos, a text under a photo's name, a truncated photo, an empty file, and a hidden one."""
    (tmp_path / "mixed" / "below").mkdir(parents=True)
    for number, path in enumerate(sorted(painted.glob("*/*.*"))[:3]):
        shutil.copy(path, tmp_path / "mixed" / "below" / f"{number}{path.suffix}")
    content = path.read_bytes()
    (tmp_path / "mixed" / f"cut{path.suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "mixed" / "text.jpg").write_text("not a photo")
    (tmp_path / "mixed" / "empty.png").touch()
    (tmp_path / "mixed" / ".hidden").touch()
    return tmp_path / "mixed"


@pytest.mark.parametrize("workers", [0, 2])
def test_each_file_is_a_row_and_a_bad_one_has_its_reason(trained: Path, mixed: Path, tmp_path: Path, workers: int):
    output = tmp_path / "answers.csv"
    assert predicted(f"run={trained}", f"photos={mixed}", f"output={output}", f"num_workers={workers}") == 3
    with output.open(encoding="utf-8") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert "JPEG" in rows["text.jpg"]["reason"]
    assert all(rows[name]["reason"] and not rows[name]["class"] for name in rows if name[0] not in "012")
    good = next(row for name, row in rows.items() if name.startswith("0"))
    classes = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert float(good["probability"]) == max(float(good[name]) for name in classes) == float(good[good["class"]])
    assert sum(float(good[name]) for name in classes) == pytest.approx(1, abs=1e-5)


def test_json_says_the_same_as_csv_and_abstains_under_the_confidence(trained: Path, mixed: Path, tmp_path: Path):
    for output in ("a.csv", "a.json"):
        predicted(f"run={trained}", f"photos={mixed}/below", f"output={tmp_path / output}", "confidence=1")
    rows = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        for row, same in zip(rows, csv.DictReader(file), strict=True):
            assert (row["path"], row["class"]) == (same["path"], same["class"])
            assert row["abstain"] is (row["probability"] < 1)
            assert same["abstain"] == str(row["abstain"]).lower()


def test_the_rows_are_what_the_run_said_of_its_photos(trained: Path, painted: Path, tmp_path: Path):
    said = load_predictions(trained / "predictions" / "val.csv")
    listed = ",".join(str(painted / path) for path in said.paths)
    predicted(f"run={trained / BEST_CHECKPOINT}", f"photos=[{listed}]", f"output={tmp_path}/a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == [said.classes[i] for i in said.predicted.tolist()]


def test_what_cannot_be_done_is_said_in_a_line(trained: Path, mixed: Path):
    for overrides, message in (
        ([f"photos={mixed}"], "which run"),
        ([f"run={trained}"], "no images given"),
        ([f"run={trained}", f"photos={mixed}/nowhere"], "no such file"),
        ([f"run={trained}", f"photos={mixed}", "output=a.xml"], r"ends in \.csv or \.json"),
        ([f"run={trained}", f"photos={mixed}", "confidence=80"], "from 0 to 1"),
        ([f"run={mixed}", f"photos={mixed}"], "no run there"),
    ):
        with pytest.raises(ValueError, match=message):
            predicted(*overrides)
