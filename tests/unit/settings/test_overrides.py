from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from torchvision import models

from flowers.settings.config import compose_settings, load_config
from flowers.settings.config_reference import options_of, torchvision_classifiers
from flowers.settings.overrides import check_overrides, composes_jobs_once, hydra_context
from flowers.settings.renamed_keys import RENAMED_KEYS, rename_old_keys
from flowers.settings.schema.training import TrainSettings


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("model=resnet51", "model=resnet51: no such option: did you mean resnet50?"),
        ("modle=resnet50", "modle: no such key: did you mean model?"),
        ("optimizer.lrr=1", "optimizer.lrr: no such key: did you mean optimizer.lr?"),
        ("lr=1", "lr: no such key: did you mean optimizer.lr=1?"),
        ("finetune.epoch=3", "finetune.epoch: no such key: did you mean finetune.epochs=3?"),
        ("trainer.gradient_clip=1", "did you mean trainer.gradient_clip_val=1?"),
        ("trainer.max_epochs=1", "give head.epochs and finetune.epochs"),
        ("+trainer.gradient_clip=1", "trainer.gradient_clip: no such key: did you mean trainer.gradient_clip_val=1?"),
        ("+trainer.max_epochs=1", "give head.epochs and finetune.epochs"),
        ("sweep.sampler=tpe", "sweep.sampler is a group of settings: give sweep/sampler=tpe"),
        ("data=1", "data=1: no such option"),
        ("logger=[tensorboard,cvs]", "logger=cvs: no such option: did you mean csv?"),
        ("logger=null", "logger=null: give logger=none"),
        ("data.augmentation=false", "data.augmentation is a group of settings: give data/augmentation=none"),
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
    compose_settings(good, TrainSettings)


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


def test_check_overrides_knows_the_keys_of_the_chosen_options():
    assert check_overrides(["data=garden", "data.source.number=50", "optimizer=sgd", "optimizer.momentum=0.5"], "train")
    with pytest.raises(ValueError, match=r"optimizer\.momentum: no such key"):
        check_overrides(["optimizer.momentum=0.5"], "train")


@pytest.mark.parametrize("photos", ["a.jpg", "[a.jpg,b]", "'a b/*.jpg'"])
def test_check_overrides_accepts_one_value_where_the_default_is_an_empty_list(photos: str):
    assert check_overrides([f"photos={photos}"], "explain") == [f"photos={photos}"]


PROGRAM_OF = {"photos": "compare", "checkpoint": "evaluate", "on_bad_photo": "evaluate"}


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


def test_composes_jobs_once_composes_each_job_as_hydra_does():
    jobs = [
        ["optimizer.lr=1"],
        ["optimizer.lr=2", "hydra.sweep.subdir=a"],
        ["optimizer=sgd", "++optimizer.momentum=0.5", "~callbacks.progress"],
        ["optimizer=sgd", "group='a b'", "~logger"],
        ["optimizer=sgd", "~logger", "data={root: b}", "seed=3"],
    ]
    with hydra_context():
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", ["optimizer.lr=1,2"], RunMode.MULTIRUN)
        expected = [loader.load_sweep_config(master, job) for job in jobs]
        with composes_jobs_once():
            composed = [loader.load_sweep_config(master, job) for job in jobs * 2]
    for config, other in zip(expected * 2, composed, strict=True):
        assert OmegaConf.to_yaml(other) == OmegaConf.to_yaml(config)
        assert OmegaConf.is_struct(other) == OmegaConf.is_struct(config)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_options_are_searched_in_the_folders_of_the_search_path(scheme: str, tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "theirs.yaml").write_text("# @package _global_\nhead:\n  epochs: 7\n", encoding="utf-8")
    lines = [f"hydra.searchpath=[{scheme}{tmp_path}]", "experiment=theirs", f"run_dir={tmp_path}"]
    assert load_config(lines).head.epochs == 7
    assert compose_settings(check_overrides(lines, "train"), TrainSettings).head.epochs == 7
    with pytest.raises(ValueError, match="no such option"):
        check_overrides(["experiment=theirs"], "train")
    with pytest.raises(ValueError, match=r"^hydra\.searchpath: no folder /none: expected one such as conf/"):
        check_overrides(["hydra.searchpath=[/none]"], "train")


def test_options_are_searched_above_the_working_directory_as_far_as_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\n", encoding="utf-8")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert "mine" not in options_of("experiment")
    (tmp_path / "pyproject.toml").touch()
    assert "mine" in options_of("experiment")
    assert check_overrides(["experiment=mine"], "train") == ["experiment=mine"]
    (tmp_path / "a" / ".git").mkdir()  # another project in it
    assert "mine" not in options_of("experiment")
