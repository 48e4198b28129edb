import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from flowers.settings.config import (
    check_targets,
    compose_run,
    compose_settings,
    compose_single,
    has_valid_job,
    load_config,
    new_folder,
)
from flowers.settings.overrides import check_overrides, hydra_context
from flowers.settings.schema.training import TrainSettings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.epochs=1,2.5"], "head.epochs=2.5: expected a whole number, at least 0"),
        (["seed=range(0,5)", "optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: expected a number, above 0"),
        (["optimizer=adam,sgd", "data.batch_size=0,1"], "data.batch_size=0: expected a whole number, at least 1"),
    ],
)
def test_compose_settings_checks_each_value_of_a_sweep(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compose_settings(check_overrides(overrides, "train"), TrainSettings)


@pytest.mark.parametrize(
    ("overrides", "is_valid", "most"),
    [
        (["seed=range(0,8)", "head.epochs=1,2,3", "data.batch_size=0"], False, 2),
        (["seed=1,2,3,4", "head.epochs=-1,1,-2"], True, 4),
        (["head.epochs=-1,1", "data.batch_size=4,0"], True, 5),
        (["head.epochs=-1,-1", "data.batch_size=4,8"], False, 6),
    ],
)
def test_has_valid_job_tries_few_jobs(overrides: list[str], is_valid: bool, most: int, monkeypatch: pytest.MonkeyPatch):
    tried = list[object]()

    def compose_and_count(*arguments: Any) -> Any:
        tried.append(arguments)
        return compose_run(*arguments)

    monkeypatch.setattr("flowers.settings.config.compose_run", compose_and_count)
    assert has_valid_job(check_overrides(overrides, "train"), TrainSettings) == is_valid
    assert len(tried) <= most


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder"], "data.root is missing: give data.root=…"),
        (["data.root=${oc.env:UNSET}"], "data.root: the environment variable UNSET is not set: give a value"),
        (["data.root=${no.such}"], "data.root: Interpolation key 'no.such' not found: give a value"),
        (
            ["~logger.tensorboard.run_dir"],
            "~logger.tensorboard.run_dir: cannot be left out: it follows another setting, ${run_dir}",
        ),
        (["+optimizer.momentum=0.5"], "optimizer.momentum: torch.optim.Adam takes no such argument"),
        (
            ["+optimizer.weight_decy=0.5"],
            "optimizer.weight_decy: torch.optim.Adam takes no such argument: did you mean optimizer.weight_decay?",
        ),
        (
            ["+callbacks.x._target_=no.such"],
            "callbacks.x._target_=no.such: cannot be imported: ModuleNotFoundError: No module named 'no'",
        ),
        (
            ["+callbacks.x._target_=math.sinn"],
            "callbacks.x._target_=math.sinn: cannot be imported: ModuleNotFoundError: No module named 'math.sinn'",
        ),
        (
            ["+callbacks.best.mod=max"],
            "callbacks.best.mod: flowers.training.checkpointing.RelocatableModelCheckpoint takes",
        ),
    ],
)
def test_load_config_and_check_targets_name_the_key(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("UNSET", raising=False)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        check_targets(load_config([*overrides, "run_dir=x"]).to_dict())
    assert "\n" not in str(error.value)


def test_load_config_composes_as_the_command_line_and_gives_each_run_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    first, second = (load_config(["experiment=quickstart", "trainer.gradient_clip_val=1"]) for _ in range(2))
    assert first.data.image_size == 48
    assert first.trainer.gradient_clip_val == 1
    assert first.run_dir != second.run_dir
    assert Path(first.run_dir).relative_to(tmp_path).parts[0] == "outputs"
    assert first.to_dict()["callbacks"]["best"]["dirpath"] == f"{first.run_dir}/checkpoints"
    assert load_config([f"run_dir={tmp_path}/run"]).run_dir == f"{tmp_path}/run"
    assert load_config(["run=x"], "evaluate").to_dict()["run"] == "x"


def test_load_config_refuses_mistakes_and_several_values():
    with pytest.raises(ValueError, match=r"did you mean optimizer\.lr"):
        load_config(["optimizer.lrr=1"])
    with pytest.raises(ValueError, match=r"seed=0,1: expected one value"):
        load_config(["seed=0,1"])


def test_load_config_leaves_the_hydra_of_another_project_as_it_is(tmp_path: Path):
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        other = GlobalHydra.instance().hydra
        assert load_config(["run_dir=x"]).head.epochs == 5
        assert GlobalHydra.instance().hydra is other
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["experiment=quickstart", "optimizer=sgd", "optimizer.momentum=0.5", "seed=3"],
        ["+optimizer.eps=1e-6", "trainer.gradient_clip_val=1", "+model.options.width=2", "~callbacks.progress"],
        ["~debug", "data.resize=${data.image_size}", "hydra.run.dir='a b'", "logger=[tensorboard,csv]"],
    ],
)
def test_a_single_run_is_composed_once_and_as_hydra_composes_it(lines: list[str], monkeypatch: pytest.MonkeyPatch):
    count = 0
    load = ConfigLoaderImpl.load_configuration

    def counted(*args: Any, **kwargs: Any) -> DictConfig:
        nonlocal count
        count += 1
        return load(*args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    monkeypatch.setattr("flowers.settings.overrides._composed", {})  # without what other tests composed
    with hydra_context():
        composed = compose_single(lines, TrainSettings)
        assert count == 1
        expected = compose_run(composed.overrides, "train")
    assert OmegaConf.to_container(composed.cfg) == OmegaConf.to_container(expected)


def test_runs_of_the_same_second_each_get_a_folder(tmp_path: Path):
    start = Barrier(4)

    def begin(_: int) -> Path:
        start.wait()
        with new_folder(tmp_path / "runs" / "12-00-00") as folder:
            return folder

    with ThreadPoolExecutor(4) as pool:
        folders = {each.name for each in pool.map(begin, range(4))}
    assert folders == {"12-00-00", "12-00-00-2", "12-00-00-3", "12-00-00-4"}


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path: Path):
    with pytest.raises(ValueError, match="wrong"), new_folder(tmp_path / "a" / "b"):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
    with suppress(ValueError), new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").touch()
        raise ValueError("wrong")
    assert (tmp_path / "a" / "b" / "file").exists()
