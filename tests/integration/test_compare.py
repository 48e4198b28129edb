import json
import shutil
from pathlib import Path

import pytest

from flowers.compare import main
from flowers.data.corrections import Correction, Corrections
from flowers.data.splits import load_split
from flowers.runs.predictions import load_run_predictions
from flowers.runs.run_folder import BEST_CHECKPOINT, CORRECTIONS_FILE, SPLIT_FILE
from tests.helpers import configuration


def compare(*overrides: str) -> None:
    main(configuration(*overrides, name="compare"))


def test_compare_finds_no_difference_between_a_run_and_its_copy(trained: Path, tmp_path: Path, capsys):
    shutil.copytree(trained, tmp_path / "copy")
    compare(f"runs=[{trained},{tmp_path}/copy]", f"output={tmp_path}/comparison.json", "max_listed=0")
    assert "no significant difference" in capsys.readouterr().out
    (pair,) = json.loads((tmp_path / "comparison.json").read_text())["against"].values()
    assert (pair["difference"], pair["gained"], pair["lost"]) == (0, [], [])


def test_compare_names_runs_by_the_parts_that_differ(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "60")
    folder = tmp_path / ("long" * 30)
    names = ["[bold] seed=0", "[bold] seed=1"]
    a, b = names
    for name in names:
        shutil.copytree(trained, folder / name)
    compare(f"runs=['{folder / names[0]}','{folder / names[1]}']", "max_listed=0")
    out = capsys.readouterr().out
    assert f"runs in {folder}\n" in out
    assert any(line.startswith((f"{a} against {b}:", f"{b} against {a}:")) for line in out.splitlines())
    assert "gained 0\n" in out


def test_compare_takes_checkpoints_for_their_run_folders(trained: Path, tmp_path: Path, capsys):
    shutil.copytree(trained, tmp_path / "copy")
    compare(f"runs=[{trained / BEST_CHECKPOINT},{tmp_path / 'copy' / BEST_CHECKPOINT}]")
    assert "no significant difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "expected at least two runs"),
        (["runs={trained}"], r"expected at least two runs, runs='\[A,B\]'"),
        (["runs=[{trained},{trained}]"], "the same run twice"),
        (["runs=[{trained},{empty}]"], "no run there"),
        (["runs=[{trained},{trained}/checkpoints/best.ckpt]", "split=train"], "split=train: expected one of val, test"),
        (["multirun={empty}"], "no finished run there"),
    ],
)
def test_compare_names_what_is_wrong(overrides: list[str], message: str, trained: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        compare(*(override.format(trained=trained, empty=tmp_path) for override in overrides))


def test_compare_scores_runs_with_other_corrections_by_one_file(trained: Path, tmp_path: Path, capsys):
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    first, second = [record for record in load_split(trained / SPLIT_FILE) if record.split == "val"][:2]
    other = next(label for label in load_run_predictions(trained, "val").classes if label != first.label)
    lines = (
        Correction(first.path, first.label, "relabel", other, first.sha256),
        Correction(second.path, second.label, "drop", "", second.sha256),
    )
    Corrections("x", lines).save(copy / CORRECTIONS_FILE)
    with pytest.raises(ValueError, match=r"with corrections \(1 relabeled, 1 dropped, 0 kept\): give corrections=FILE"):
        compare(f"runs=[{trained},{copy}]")
    compare(f"runs=[{trained},{copy}]", f"corrections={copy}/corrections.csv", f"output={tmp_path}/c.json")
    n = len(load_run_predictions(trained, "val"))
    assert f"{n - 1} images that all runs scored, with the labels of" in capsys.readouterr().out
    (pair,) = json.loads((tmp_path / "c.json").read_text())["against"].values()
    assert (pair["n"], pair["difference"]) == (n - 1, 0)
