import csv
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from flowers.deploy.classifier import Classifier, Prediction
from flowers.deploy.predict import PredictionRow
from flowers.deploy.unfinished_rows import UnfinishedRows
from flowers.evaluation.evaluator import run_evaluation
from flowers.features import int8_backbone
from flowers.predict import main
from flowers.runs.predictions import load_predictions, load_run_predictions
from flowers.runs.rejection import load_rejection
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT
from flowers.runtime.files import read_json
from flowers.runtime.text import class_columns, read_csv
from flowers.training.experiment import run_training
from tests.helpers import SMALL, configuration


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
    of_class = {
        name: float(good[f"probability_{name}"]) for name in ("daisy", "dandelion", "rose", "sunflower", "tulip")
    }
    assert float(good["probability"]) == max(of_class.values()) == of_class[good["class"]]
    assert sum(of_class.values()) == pytest.approx(1, abs=1e-5)


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


def test_predict_says_none_of_these(
    rejecting: Path,
    trained: Path,
    painted: Path,
    mixed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "400")
    paths, rejection = load_run_predictions(rejecting, "val").paths, load_rejection(rejecting)
    assert rejection is not None
    files = [f"{painted}/{paths[int(index)]}" for index in rejection.val_scores.argsort()[[0, -1]]]
    run = [f"run={rejecting}", "reject=0.9", f"photos=[{','.join(files)},{mixed}/text.jpg]"]
    for output in ("a.csv", "a.json"):
        assert predict(*run, f"output={tmp_path / output}") == 2
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        csv_rows = list(csv.DictReader(file))
    for row, csv_row in zip(json.loads((tmp_path / "a.json").read_text(encoding="utf-8")), csv_rows, strict=True):
        assert csv_row["none_of_these"] == str(row["none_of_these"]).lower()
        assert csv_row["strangeness"] == ("" if row["reason"] else str(round(row["strangeness"], 6)))
    assert {row["none_of_these"] for row in csv_rows} == {"true", "false"}
    assert predict(*run) == 2
    assert "none of these (strangeness" in capsys.readouterr().out
    predict(*run, "reject=0", f"output={tmp_path}/off.csv")
    assert "strangeness" not in (tmp_path / "off.csv").read_text(encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"has no rejection\.safetensors: python -m flowers.evaluate run=.* reject=0.2"
    ):
        predict(f"run={trained}", "reject=0.2", f"photos={mixed}")


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
        (
            [f"run={trained}", f"photos={mixed}", "confidence=80"],
            "confidence=80: expected a number from 0 to 1, or null",
        ),
        ([f"run={mixed}", f"photos={mixed}"], f"run={mixed}"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(*overrides)


def test_predict_ends_with_an_error_after_the_rows_if_no_file_could_be_read(trained: Path, mixed: Path, tmp_path: Path):
    for output in ("a.csv", "a.json"):
        with pytest.raises(ValueError, match="none of 1 files could be read"):
            predict(f"run={trained}", f"photos={mixed}/text.jpg", f"output={tmp_path / output}")
    assert "not a JPEG" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert len((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()) == 2


NAMES = ["=1+1", "$a$_b_ [/b]", "\x1b[31m\r", os.fsdecode(b"caf\xe9"), "<b>|`"]


@pytest.fixture
def named_oddly(trained: Path, tmp_path: Path) -> Path:
    """A run whose classes have odd names."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    checkpoint = torch.load(run / BEST_CHECKPOINT, weights_only=True)
    checkpoint["hyper_parameters"]["classes"] = NAMES
    torch.save(checkpoint, run / BEST_CHECKPOINT)
    return run


def test_predict_writes_odd_names(named_oddly: Path, painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "odd").mkdir()
    for name in ("=2.jpg", os.fsdecode(b"\xe9\x1b[31m\r.jpg")):
        shutil.copy(painted / "rose" / "00002.jpg", tmp_path / "odd" / name)
    for output in ("output=null", f"output={tmp_path}/a.csv", f"output={tmp_path}/a.json"):
        assert predict(f"run={named_oddly}", f"photos={tmp_path}/odd", output) == 2
    heading, *rows = read_csv(tmp_path / "a.csv")
    assert heading == ["path", "class", "probability", *class_columns("probability", NAMES), "abstain", "reason"]
    from_json = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [row[:2] for row in rows] == [[row["path"], row["class"]] for row in from_json]
    assert {Path(row[0]).name for row in rows} == {path.name for path in (tmp_path / "odd").iterdir()}
    table = capsys.readouterr().out
    assert not set(table) & set("\x1b\r\udce9")
    assert "=2.jpg" in table


def test_int8_run_is_scored_and_used_in_8_bits_and_says_so(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr(int8_backbone, "MIN_AGREEMENT", 0.0)  # the network is small and hardly trained
    run, scores = tmp_path / "run", tmp_path / "scores.json"
    settings = [*SMALL, "finetune.epochs=0", "features.engine=int8", f"data.root={painted}", f"run_dir={run}"]
    accuracy = run_training(configuration(*settings))
    assert read_json(run / "result.json")["engine"] == "int8"
    # From here on, the program is in the cache, and the images of the run are not opened for it.
    monkeypatch.setattr(Run, "data", open_no_images)
    for name, engine in (("a.csv", "null"), ("a.json", "int8"), ("b.csv", "pytorch"), ("b.json", "pytorch")):
        predict(f"run={run}", f"photos={painted}/tulip", f"engine={engine}", f"output={tmp_path / name}")
    header, *rows = read_csv(tmp_path / "a.csv")
    plain, *expected = read_csv(tmp_path / "b.csv")
    assert header == [*plain, "engine"]
    assert {row[-1] for row in rows} == {"int8"}
    assert {row["engine"] for row in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))} == {"int8"}
    assert "engine" not in json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))[0]
    differences = [abs(float(row[2]) - float(other[2])) for row, other in zip(rows, expected, strict=True)]
    assert 0 < max(differences) < 0.3
    monkeypatch.setattr(int8_backbone, "MIN_AGREEMENT", 1.1)
    with pytest.raises(ValueError, match=r"engine=int8 answers \d+ of 10 val images differently .* at least 1\.1"):
        predict(f"run={run}", f"photos={painted}/tulip", f"output={tmp_path}/c.csv")
    assert not (tmp_path / "c.csv").exists()
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr(int8_backbone, "MIN_AGREEMENT", 0.0)
    assert run_evaluation(configuration(f"run={run}", f"output={scores}", name="evaluate")) == accuracy
    assert read_json(scores)["val"]["engine"] == "int8"


def open_no_images(*_: object) -> None:
    raise AssertionError("the program is in the cache")


def test_int8_is_refused_without_the_instructions_before_anything_is_written(
    trained: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    run, output = tmp_path / "run", tmp_path / "answers.csv"
    with pytest.raises(ValueError, match="engine=int8 needs a CPU with VNNI or AMX"):
        run_training(configuration(*SMALL, "features.engine=int8", f"data.root={painted}", f"run_dir={run}"))
    with pytest.raises(ValueError, match="engine=int8 needs a CPU with VNNI or AMX"):
        predict(f"run={trained}", f"photos={painted}/tulip", "engine=int8", f"output={output}")
    with pytest.raises(ValueError, match="engine=int8 needs a CPU with VNNI or AMX"):
        run_evaluation(configuration(f"run={trained}", "engine=int8", f"report={run}", name="evaluate"))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_prediction_goes_on_behind_what_it_has_written(
    trained: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (mixed / os.fsdecode(b"d\xe9j\xe0 (1).jpg")).write_bytes(b"")  # no UTF-8
    command = [f"run={trained}", f"photos={mixed}", "output=a.csv"]
    monkeypatch.chdir(tmp_path)
    predict(*command[:2], "output=whole.csv")
    whole, classified, stream = Path("whole.csv").read_bytes(), list[str](), Classifier.stream

    def killed(self: Classifier, files: Sequence[str], num_workers: int = 0) -> Iterator[tuple[str, Prediction | str]]:
        for number, (file, result) in enumerate(stream(self, files, num_workers)):
            if number == 4:
                raise KeyboardInterrupt
            classified.append(file)
            yield file, result

    monkeypatch.setattr(Classifier, "stream", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(*command)
    assert len(classified) == 4
    assert not Path("a.csv").exists()
    rows = Path("a.csv.unfinished")
    with rows.open("ab") as file:
        file.write(b'["torn')
    assert predict(*command) == 3
    assert len(classified) == 7
    assert (Path("a.csv").read_bytes(), rows.exists()) == (whole, False)
    assert "going on behind the 4 of 7 rows" in capsys.readouterr().err

    for change in ("confidence=0.9", "tta=flip"):  # other rows: all are made again
        with pytest.raises(KeyboardInterrupt):
            predict(*command)
        monkeypatch.setattr(Classifier, "stream", stream)
        predict(*command, change)
        assert "going on" not in capsys.readouterr().err
        monkeypatch.setattr(Classifier, "stream", killed)


def test_a_photo_that_has_changed_since_is_classified_again(tmp_path: Path):
    files = [str(tmp_path / f"{number}.jpg") for number in range(3)]
    origin = {"run": "a"}
    for file in files:
        Path(file).touch()
    with UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, origin, files) as rows:
        for file in files:
            rows.append(PredictionRow(file, "rose", 1.0, {"rose": 1.0}, False, ""))
        with pytest.raises(ValueError, match="another process writes it"):
            UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, origin, files)
    with UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, origin, [*files, "new"]) as rows:
        assert (rows.done, [row.path for row in rows]) == (3, files)
    later = rows.path.stat().st_mtime_ns + 10
    os.utime(files[1], ns=(later, later))
    with UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, origin, files) as rows:
        assert (rows.done, len([*rows])) == (1, 1)
    with UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, {"run": "b"}, files) as rows:
        assert rows.done == 0


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "[1,2,3,4,5,6,7,8]", '["a", "b", 1, {}, false, "", null, false]', "9" * 99]
)
def test_a_damaged_row_ends_the_rows(line: str, tmp_path: Path):
    with UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, {}, ["x"]) as rows:
        pass
    rows.path.write_text(f"{{}}\n{line}\n", encoding="utf-8")
    with UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, {}, ["x"]) as rows:
        assert (rows.done, [*rows]) == (0, [])


def test_rows_are_written_through_no_link(tmp_path: Path):
    (tmp_path / "a.csv.unfinished").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"a\.csv\.unfinished"):
        UnfinishedRows(tmp_path / "a.csv", PredictionRow.from_json, {}, [])
    assert not (tmp_path / "elsewhere").exists()
