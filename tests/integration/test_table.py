"""Programs on the photos of a table."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from flowers.evaluation.evaluator import run_evaluation
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT
from flowers.training.experiment import run_training
from tests.helpers import TINY, configuration, packed, program_here, weights

SETTINGS = ("data=table", *TINY[1:])


def write_table(path: Path, root: Path, columns: tuple[str, ...] = ("path", "label")) -> Path:
    rows = [(file.relative_to(root).as_posix(), file.parent.name) for file in sorted(root.rglob("*.jpg"))]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture(scope="module")
def tabled(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    """A run as `tiny`, on a table of the same photos, which is gone since."""
    folder = tmp_path_factory.mktemp("tabled")
    table = write_table(folder / "labels.csv", painted, ("image", "species"))
    settings = [f"data.table={table}", f"data.root={painted}", f"run_dir={folder / 'run'}", "data.test_fraction=0.1"]
    run_training(configuration(*SETTINGS, *settings))
    table.unlink()
    return folder / "run"


def test_a_run_on_a_table_is_that_on_the_folder_of_the_same_photos_bit_for_bit(tabled: Path, tiny: Path):
    assert (tabled / "split.csv").read_bytes() == (tiny / "split.csv").read_bytes()
    ours, theirs = weights(tabled, BEST_CHECKPOINT), weights(tiny, BEST_CHECKPOINT)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    results = [json.loads((run / "result.json").read_text()) for run in (tabled, tiny)]
    assert results[0]["val"] == results[1]["val"]
    assert results[0]["test"] == results[1]["test"]


def test_evaluate_scores_a_split_of_a_run_whose_table_is_gone(tabled: Path, tmp_path: Path, painted: Path):
    found = run_evaluation(configuration(f"run={tabled}", "split=test", f"report={tmp_path}", name="evaluate"))
    assert found == json.loads((tabled / "result.json").read_text())["test"]["accuracy"]
    moved = shutil.copytree(painted, tmp_path / "moved")
    assert torch.equal(Run.open(tabled, str(moved)).features("test"), Run.open(tabled).features("test"))


def test_a_run_whose_table_is_gone_is_resumed(tabled: Path, tmp_path: Path, painted: Path):
    copy = shutil.copytree(tabled, tmp_path / "run")
    settings = [f"data.table={tabled.parent / 'labels.csv'}", f"data.root={painted}", "data.test_fraction=0.1"]
    accuracy = run_training(configuration(*SETTINGS, *settings, f"run_dir={copy}", f"resume={copy}"))
    assert accuracy == json.loads((tabled / "result.json").read_text())["val"]["accuracy"]
    assert (copy / "split.csv").read_bytes() == (tabled / "split.csv").read_bytes()


def test_evaluate_scores_the_photos_of_a_table_as_those_of_a_folder(tiny: Path, tmp_path: Path, painted: Path):
    table = write_table(tmp_path / "others.tsv", painted, ("file", "kind"))
    table.write_text(table.read_text().replace(",", "\t").replace("\t", f"\t{painted.name}/", 0))
    (tmp_path / painted.name).symlink_to(painted)
    rows = [f"{painted.name}/{line}" for line in table.read_text().splitlines()[1:]]
    table.write_text("\n".join(["file\tkind", *rows]))
    asked = [f"run={tiny}", f"photos={table}", f"report={tmp_path}"]
    own = run_evaluation(configuration(f"run={tiny}", f"photos={painted}", f"report={tmp_path}", name="evaluate"))
    assert run_evaluation(configuration(*asked, name="evaluate")) == own
    done = program_here(*asked, name="evaluate")
    assert not done.returncode, done.stderr
    with pytest.raises(ValueError, match=r"has no column kinds \(data.columns.label\): did you mean kind\?"):
        run_evaluation(configuration(*asked, "columns.label=kinds", name="evaluate"))


def test_pack_of_a_table_makes_the_shards_of_the_folder(shards: Path, tmp_path: Path, painted: Path):
    table = write_table(painted.parent / "packed.csv", painted)
    copy = shutil.copytree(painted, tmp_path / "garden")
    shutil.move(table, copy / "labels.csv")
    packed(copy / "labels.csv", tmp_path / "packed", "data.test_fraction=0.1")
    names = sorted(path.name for path in shards.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "packed").iterdir())
    assert all((shards / name).read_bytes() == (tmp_path / "packed" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data=table", "data.table=gone.csv"], "gone.csv: expected a file with a row for each photo"),
        (["data=table"], "data.table is missing"),
        (["data=labels.csv"], "data=table data.table=labels.csv"),
        (["--csv", "labels.csv"], "data=table data.table=labels.csv"),
        (["data=table", "data.table=labels.csv", "data.columns.lable=x"], "did you mean data.columns.label?"),
        (["data=table", "data.table=labels.csv", "data.layout=auto"], "data.layout"),
        (["data=folder", "data.root=labels.csv"], "did you mean data=table data.table="),
    ],
)
def test_train_answers_a_wrong_table_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("path,label\n")
    done = program_here(*settings, "model=resnet18", "model.weights=null", "trainer=cpu", "hydra.run.dir=run")
    assert done.returncode
    assert message in done.stderr
    assert "Traceback" not in done.stderr
