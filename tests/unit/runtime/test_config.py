import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torchvision import models

from flowers.runtime.config import (
    RENAMED_KEYS,
    check_overrides,
    check_targets,
    compose_checked,
    load_config,
    rename_old_keys,
    to_container,
    torchvision_classifiers,
)


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("model=resnet51", "model=resnet51: no such option: did you mean resnet50?"),
        ("modle=resnet50", "modle: no such key: did you mean model?"),
        ("optimizer.lrr=1", "optimizer.lrr: no such key: did you mean optimizer.lr?"),
        ("lr=1", "lr: no such key: did you mean optimizer.lr?"),
        ("finetune.epoch=3", "finetune.epoch: no such key: did you mean finetune.epochs?"),
        ("trainer.gradient_clip=1", "did you mean trainer.gradient_clip_val?"),
        ("trainer.max_epochs=1", "give head.epochs and finetune.epochs"),
        ("+trainer.gradient_clip=1", "trainer.gradient_clip: no such key: did you mean trainer.gradient_clip_val?"),
        ("+trainer.max_epochs=1", "give head.epochs and finetune.epochs"),
        ("sweep.sampler=tpe", "sweep.sampler is a group of settings: give sweep/sampler=tpe"),
        ("data=1", "data=1: no such option"),
        ("optimizer.lr", "not of the form key=value"),
        ("experiment=reprot", "did you mean report?"),
        ("hydra/launcher=jobblib", "hydra/launcher=jobblib: no such option: did you mean joblib?"),
    ],
)
def test_check_overrides_names_the_nearest_valid_name(override: str, answer: str):
    with pytest.raises(ValueError, match=r".") as error:
        check_overrides([override], "train")
    assert answer in str(error.value)
    assert "\n" not in str(error.value)


def test_check_overrides_returns_valid_overrides_unchanged():
    good = [
        "model=resnet18,resnet50",
        "optimizer.lr=1e-3,1e-2",
        "seed=range(0,3)",
        "data=folder",
        "data.root=/a",
        "~debug",
    ]
    good += [
        "+optimizer.eps=1e-6",
        "trainer.devices=[0,1]",
        "hydra.run.dir='/a b'",
        "model.weights=null",
        "experiment=report",
    ]
    good += ["data.resize=${data.image_size}", "data.batch_size=choice(16,32)"]
    assert check_overrides(good, "train") == good
    compose_checked(good, "train")


def test_check_overrides_adds_arguments_of_the_trainer():
    assert check_overrides(["trainer.gradient_clip_val=1"], "train") == ["++trainer.gradient_clip_val=1"]


def test_check_overrides_opens_the_options_of_a_model():
    options = ["model.options={dropout: 0.5}", "+model.options.width=2"]
    assert check_overrides(options, "train") == ["++model.options={dropout: 0.5}", "++model.options.width=2"]
    assert load_config([*options, "run_dir=x"]).model.options == {"dropout": 0.5, "width": 2}


def test_any_classifier_of_torchvision_is_an_option():
    assert load_config(["model=resnet34", "run_dir=x"]).model.architecture == "resnet34"
    assert {*torchvision_classifiers()} == {*models.list_models(module=models)}
    with pytest.raises(ValueError, match=r"model=resnext50_32x4: no such option: did you mean resnext50_32x4d\?"):
        check_overrides(["model=resnext50_32x4"], "train")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.epochs=1,2.5"], "head.epochs=2.5: expected a whole number, at least 0"),
        (["seed=range(0,5)", "optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: expected a number, above 0"),
        (["optimizer=adam,sgd", "data.batch_size=0,1"], "data.batch_size=0: expected a whole number, at least 1"),
    ],
)
def test_compose_checked_checks_each_value_of_a_sweep(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compose_checked(check_overrides(overrides, "train"), "train")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder"], "data.root is missing: give data.root=…"),
        (["data.root=${oc.env:UNSET}"], "data.root: the environment variable UNSET is not set: give a value"),
        (["data.root=${no.such}"], "data.root: Interpolation key 'no.such' not found: give a value"),
        (["~logger.run_dir"], "~logger.run_dir: cannot be left out: it follows another setting, ${run_dir}"),
        (["+optimizer.momentum=0.5"], "optimizer.momentum: torch.optim.Adam takes no such argument"),
        (
            ["+optimizer.weight_decy=0.5"],
            "optimizer.weight_decy: torch.optim.Adam takes no such argument: did you mean optimizer.weight_decay?",
        ),
        (["+callbacks.x._target_=no.such"], "callbacks.x._target_=no.such: cannot be imported: "),
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
        check_targets(to_container(load_config([*overrides, "run_dir=x"])))
    assert "\n" not in str(error.value)


def test_check_overrides_knows_the_keys_of_the_chosen_options():
    assert check_overrides(["data=garden", "data.source.number=50", "optimizer=sgd", "optimizer.momentum=0.5"], "train")
    with pytest.raises(ValueError, match=r"optimizer\.momentum: no such key"):
        check_overrides(["optimizer.momentum=0.5"], "train")


@pytest.mark.parametrize("photos", ["a.jpg", "[a.jpg,b]", "'a b/*.jpg'"])
def test_check_overrides_accepts_one_value_where_the_default_is_an_empty_list(photos: str):
    assert check_overrides([f"photos={photos}"], "explain") == [f"photos={photos}"]


PROGRAM_OF = {"photos": "compare", "predict": "benchmark", "checkpoint": "evaluate", "on_bad_photo": "evaluate"}
PROGRAM_OF |= dict.fromkeys(("limit", "int8_limit", "calibration"), "export")
SHARDS = ("data.patience", "data.mixed_shards", "data.endpoint")


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_check_overrides_answers_a_renamed_key_with_the_new_one(old: str, new: str):
    options = ["data=shards"] if old in SHARDS else []
    with pytest.raises(ValueError, match=f"^{old} is now {new}$"):
        check_overrides([*options, f"{old}=1"], PROGRAM_OF.get(old, "train"))


@pytest.mark.parametrize(
    "override", ["~callbacks.within", "+callbacks.within.minutes=1", "++callbacks.within.minutes=1"]
)
def test_check_overrides_answers_a_renamed_key_in_each_form(override: str):
    with pytest.raises(ValueError, match=r"^callbacks\.within(\.minutes)? is now callbacks\.mid_epoch(\.minutes)?$"):
        check_overrides([override], "train")


def test_check_overrides_accepts_a_key_that_was_renamed_in_another_program_only():
    assert check_overrides(["photos=a.jpg"], "predict") == ["photos=a.jpg"]


def test_rename_old_keys_upgrades_a_nested_configuration_and_leaves_its_argument():
    old = {"data": {"flip": 0.5, "hue": 0.1}, "head": {"views": 1}, "callbacks": {"within": {"minutes": 1}}, "seed": 0}
    new = rename_old_keys(old)
    assert new == {
        "data": {"hflip_prob": 0.5, "hue": 0.1},
        "head": {"cached_views": 1},
        "callbacks": {"mid_epoch": {"minutes": 1}},
        "seed": 0,
    }
    assert old["data"] == {"flip": 0.5, "hue": 0.1}
    assert rename_old_keys(new) == new


def test_load_config_composes_as_the_command_line_and_gives_each_run_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    first, second = (load_config(["experiment=quickstart", "trainer.gradient_clip_val=1"]) for _ in range(2))
    assert first.data.image_size == 48
    assert first.trainer.gradient_clip_val == 1
    assert first.run_dir != second.run_dir
    assert Path(first.run_dir).relative_to(tmp_path).parts[0] == "outputs"
    assert first.callbacks.best.dirpath == f"{first.run_dir}/checkpoints"
    assert load_config([f"run_dir={tmp_path}/run"]).run_dir == f"{tmp_path}/run"
    assert load_config(["run=x"], "evaluate").run == "x"


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
