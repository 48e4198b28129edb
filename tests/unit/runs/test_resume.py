from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flowers.runs.resume import expand_resume_args, read_start, write_start
from flowers.runs.run_folder import BEST_CHECKPOINT, CONFIG_FILE, LAST_CHECKPOINT, RESUMES_FILE, START_FILE
from flowers.settings.overrides import quote_override


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
    own = [f"resume={folder}", f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
    assert expanded == ["model=resnet18", "seed=1", "seed=2", *own]
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("overrides", [[], ["seed=1"], ["resume=null"], ["resume="]])
def test_expand_resume_args_leaves_a_new_run_alone(overrides: list[str]):
    assert expand_resume_args(overrides) == overrides


def test_expand_resume_args_needs_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no run there \(no started.yaml\): give a run folder"):
        expand_resume_args([f"resume={tmp_path}"])


@pytest.mark.parametrize(
    "content", ["", "- a", "cwd: 1\noverrides: []", "cwd: x\noverrides: seed=1", "\x00", "{", "a: [" * 5000]
)
def test_expand_resume_args_names_a_damaged_start(content: str, run_dir: Path):
    (run_dir / START_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"started\.yaml (is damaged|cannot be read): .*: start a new run") as error:
        expand_resume_args([f"resume={run_dir}"])
    assert "\n" not in str(error.value)


def test_read_start_refuses_a_run_that_was_started_from_python(tmp_path: Path):
    write_start(tmp_path, None, is_resumed=False)
    write_start(tmp_path, None, is_resumed=True)
    with pytest.raises(ValueError, match="was started from Python: resume it there, with run_dir="):
        read_start(tmp_path)


def test_write_start_keeps_what_the_run_was_started_with(run_dir: Path):
    before = (run_dir / START_FILE).read_text(encoding="utf-8")
    write_start(run_dir, ["model=resnet18", "seed=1", "head.epochs=9", "resume=x"], is_resumed=True)
    assert (run_dir / START_FILE).read_text(encoding="utf-8") == before
    assert OmegaConf.load(run_dir / RESUMES_FILE)[0].overrides == ["head.epochs=9"]


def test_read_start_takes_the_overrides_of_a_resume_once_it_has_written_a_checkpoint(run_dir: Path):
    write_start(run_dir, ["model=resnet18", "seed=1", "head.epochs=9"], is_resumed=True)
    assert "head.epochs=9" not in read_start(run_dir)[1]  # the resume may have failed because of it
    (run_dir / LAST_CHECKPOINT).touch()
    assert read_start(run_dir)[1][-1] == "head.epochs=9"
