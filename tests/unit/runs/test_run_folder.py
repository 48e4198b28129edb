import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flowers.runs.run_folder import (
    BEST_CHECKPOINT,
    CONFIG_FILE,
    RESULT_FILE,
    START_FILE,
    find_checkpoint,
    iterate_multirun,
    own_run_dir,
    provenance,
    read_result,
    require_run_dir,
    run_dir_of,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "a run"
    (folder / BEST_CHECKPOINT).parent.mkdir(parents=True)
    (folder / BEST_CHECKPOINT).touch()
    (folder / CONFIG_FILE).touch()
    start = {"cwd": str(tmp_path), "overrides": ["model=resnet18", "seed=1", "resume=elsewhere"]}
    OmegaConf.save(OmegaConf.create(start), folder / START_FILE)
    return folder


def test_find_checkpoint_takes_a_run_folder_or_a_file(run_dir: Path):
    best = run_dir / BEST_CHECKPOINT
    assert find_checkpoint(run_dir) == find_checkpoint(str(best)) == best
    assert run_dir_of(best) == run_dir


@pytest.mark.parametrize("run", [None, ""])
def test_require_run_dir_asks_for_a_run(run: str | None):
    with pytest.raises(ValueError, match=r"which run\? Give run=FOLDER"):
        require_run_dir(run)


def test_require_run_dir_names_the_folder_and_the_missing_file(tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(f"run={tmp_path}: no run there (no config.yaml)")):
        require_run_dir(tmp_path)


def test_own_run_dir_refuses_a_second_process_and_ends_with_the_first(tmp_path: Path):
    code = "import sys, pathlib\nfrom flowers.runs.run_folder import own_run_dir\n"
    code += "with own_run_dir(pathlib.Path(sys.argv[1])): print('owned', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "owned\n"
        with pytest.raises(ValueError, match="is in use: another process trains there"), own_run_dir(tmp_path):
            pass
        other.kill()
        other.wait()
        with own_run_dir(tmp_path):
            pass


def test_find_checkpoint_says_that_the_run_has_not_finished(run_dir: Path, caplog: pytest.LogCaptureFixture):
    find_checkpoint(run_dir)
    assert "has not finished: its best checkpoint so far is used" in caplog.text
    caplog.clear()
    (run_dir / RESULT_FILE).touch()
    find_checkpoint(run_dir)
    assert caplog.text == ""
    (run_dir / BEST_CHECKPOINT).unlink()
    with pytest.raises(ValueError, match=r"it has lost checkpoints/best\.ckpt: resume the run"):
        find_checkpoint(run_dir)


def test_read_result_names_a_damaged_file(tmp_path: Path):
    assert read_result(tmp_path) is None
    val = {"accuracy": 0.5, "loss": 1.0, "n": 4, "interval": [0.1, 0.9]}
    (tmp_path / RESULT_FILE).write_text(json.dumps({"val": val, "cost": {"seconds": {"head": 1.0}}}), encoding="utf-8")
    result = read_result(tmp_path)
    assert result is not None
    assert result["val"] == val
    for content in ("{", "[]", "{}", json.dumps({"val": val | {"accuracy": "x"}}), json.dumps({"val": val, "cost": 1})):
        (tmp_path / RESULT_FILE).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"result\.json (is damaged|cannot be read)"):
            read_result(tmp_path)


def test_iterate_multirun_yields_run_folders_and_overrides_by_name(tmp_path: Path):
    for name in ("1", "0"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(f"- seed={name}\n", encoding="utf-8")
    (tmp_path / "notes").mkdir()
    assert list(iterate_multirun(tmp_path)) == [(tmp_path / "0", ["seed=0"]), (tmp_path / "1", ["seed=1"])]


def test_provenance_names_versions_and_a_commit():
    found = provenance()
    assert found["versions"].keys() >= {"python", "torch", "lightning"}
    assert found["git"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["git"])


SCORE = {"accuracy": 0.5, "loss": 1.0, "n": 4, "interval": [0.1, 0.9]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, r"temperature=0: expected a number, above 0"),
        ({"temperature": -1}, r"temperature=-1: expected a number, above 0"),
        ({"temperature": float("nan")}, r"temperature=nan: expected a number, above 0"),
        ({"temperature": float("inf")}, r"temperature=inf: expected a number, above 0"),
        ({"temperature": "1"}, r"temperature=1: expected a number, above 0"),
        ({"temperature": [1]}, r"temperature=\[1\]: expected a number, above 0"),
        ({"temprature": 1.0}, r"temprature: no such key: did you mean temperature\?"),
        ({"x" * 10**6: 1}, r"x{200}…: no such key"),
        (
            {"classes": ["a", "a"]},
            r"classes=\[a,a\]: expected at least one and at most 32,768 names of classes, all dif",
        ),
        ({"classes": [""]}, r"classes=\[\]: expected"),
        ({"classes": ["a\nb" * 1000]}, r"classes=\[a\\nb.*…: expected"),
        (
            {"val": SCORE | {"interval": [0.9, 0.1]}},
            r"val.interval=\[0.9,0.1\]: expected \[low, high\], each from 0 to 1",
        ),
        ({"val": SCORE | {"n": 0}}, r"val.n=0: expected a whole number, at least 1"),
        ({"cost": {"seconds": {"head": -1.0}}}, r"cost.seconds={head:-1.0}: expected"),
        ({"seed": 2**70}, r"seed=1180591620717411303424: expected"),
    ],
)
def test_read_result_names_file_key_value_and_what_was_expected(change: dict[str, Any], message: str, tmp_path: Path):
    result = {"val": SCORE, "cost": {"seconds": {"head": 1.0}}} | change
    (tmp_path / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"result\.json is damaged: {message}") as error:
        read_result(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_iterate_multirun_resolves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN", "secret")
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    file = tmp_path / "0" / ".hydra" / "overrides.yaml"
    file.write_text("- data.root=${oc.env:TOKEN}\n- ${oc.env:UNSET}\n- 1\n", encoding="utf-8")
    assert next(iter(iterate_multirun(tmp_path)))[1] == ["data.root=${oc.env:TOKEN}", "${oc.env:UNSET}", "1"]
    for text in ("a: 1", "- [a]", "- {a: b}", "- null", "", "- &a x\n- *a"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"overrides\.yaml (is damaged|cannot be read): "):
            list(iterate_multirun(tmp_path))
