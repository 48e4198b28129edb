import json
import shutil
from pathlib import Path

import pytest

from flowers.compare import main
from flowers.runtime.run_folder import BEST_CHECKPOINT
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
        (["runs=[{trained},{trained}/checkpoints/best.ckpt]", "split=train"], r"no predictions/train\.csv"),
        (["multirun={empty}"], "no finished run there"),
    ],
)
def test_compare_names_what_is_wrong(overrides: list[str], message: str, trained: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        compare(*(override.format(trained=trained, empty=tmp_path) for override in overrides))
