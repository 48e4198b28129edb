import logging
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flowers.runtime.config import quote_override
from flowers.runtime.run_folder import (
    BEST_CHECKPOINT,
    CONFIG_FILE,
    START_FILE,
    expand_resume_args,
    find_checkpoint,
    iterate_multirun,
    provenance,
    require_run_dir,
    resumable,
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


@pytest.mark.parametrize("form", ["resume={}", "resume='{}'"])
def test_expand_resume_args_puts_the_runs_overrides_first(
    form: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(run_dir)
    folder = quote_override(run_dir)
    expanded = expand_resume_args([form.format(run_dir), "seed=2"])
    assert expanded == ["model=resnet18", "seed=1", "seed=2", f"resume={folder}", f"hydra.run.dir={folder}"]
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("overrides", [[], ["seed=1"], ["resume=null"], ["resume="]])
def test_expand_resume_args_leaves_a_new_run_alone(overrides: list[str]):
    assert expand_resume_args(overrides) == overrides


def test_expand_resume_args_needs_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no run there \(no started.yaml\): give a run folder"):
        expand_resume_args([f"resume={tmp_path}"])


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


def test_iterate_multirun_yields_run_folders_and_overrides_by_name(tmp_path: Path):
    for name in ("1", "0"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(f"- seed={name}\n", encoding="utf-8")
    (tmp_path / "notes").mkdir()
    assert list(iterate_multirun(tmp_path)) == [(tmp_path / "0", ["seed=0"]), (tmp_path / "1", ["seed=1"])]


def test_resumable_logs_the_command_after_an_interruption(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as error, resumable("the command"):
        raise KeyboardInterrupt
    assert error.value.code == 130
    assert caplog.messages == ["interrupted; resume with: the command"]


def test_resumable_explains_a_lost_peer_and_nothing_else():
    with (
        pytest.raises(ValueError, match="another process of this run ended early; resume with: the command"),
        resumable("the command"),
    ):
        raise RuntimeError("gloo: Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), resumable("the command"):
        raise RuntimeError("shapes")


def test_provenance_names_versions_and_a_commit():
    found = provenance()
    assert found["versions"].keys() >= {"python", "torch", "lightning"}
    assert found["git"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["git"])
