import inspect
from dataclasses import fields
from typing import Any

import pytest
import yaml
from lightning import Trainer

from benchmarks.settings import SCHEMAS
from flowers.data.datamodule import Loading
from flowers.data.sources.build import SOURCE_SETTINGS
from flowers.data.splitter import Splitter
from flowers.data.transforms import Augmentation
from flowers.models.network import Network
from flowers.settings.config_reference import CONF, GROUPS, help_text, options_of, reference_page, settings_of
from flowers.settings.overrides import flatten
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.programs import CONFIGURED
from tests.helpers import configuration

OPTIONS = [
    f"{group.name}={option.stem}"
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name not in ("hydra", "recipe")
    for option in sorted(group.glob("*.yaml"))
]


def composed(*overrides: str) -> Any:
    return configuration("run_dir=/run", *overrides)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_composes_and_each_of_its_keys_has_a_reader(option: str):
    missing = {"data=folder": "data.root=/photos", "data=shards": "data.root=/photos", "data=table": "data.table=a.csv"}
    cfg = composed(option, *([missing[option]] if option in missing else []))
    parts = [{each.name for each in fields(part)} for part in (Splitter, Preprocessing, Augmentation, Loading)]
    assert set(cfg.data.given()) <= {"root"}.union(SOURCE_SETTINGS, *parts)
    assert set(cfg.model.given()) <= {*inspect.signature(Network).parameters}.union(*parts)
    assert set(cfg.trainer.given()) <= set(inspect.signature(Trainer).parameters)
    assert callable(cfg.optimizer.build())
    assert callable(cfg.scheduler.build())
    assert all(callback.build() for callback in cfg.callbacks.parts().values())


def test_the_settings_of_the_report_are_the_defaults():
    defaults, report = composed(), composed("experiment=report")
    assert defaults == report
    assert defaults.model.architecture == "resnet152"
    assert defaults.optimizer.to_dict()["_target_"] == "torch.optim.Adam"
    assert (defaults.optimizer.lr, defaults.finetune.backbone_lr, defaults.data.batch_size) == (1e-4, 1e-4, 64)
    assert defaults.head.epochs + defaults.finetune.epochs == 50
    assert (defaults.data.image_size, defaults.data.val_fraction) == (224, 0.2)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_an_experiment_is_a_short_delta_that_opens_with_its_command(name: str):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[1] == f"# flowers train experiment={name}"
    assert sum(bool(line.strip()) and not line.startswith("#") for line in lines) <= 15


@pytest.mark.parametrize(
    "name", [*CONFIGURED, *SCHEMAS, *(f"{group}/{option}" for group in GROUPS for option in options_of(group))]
)
def test_each_key_has_a_text(name: str):
    if not name.startswith(("experiment/", "debug/")):  # these only set keys of other files
        assert [setting.key for setting in settings_of(name) if not setting.text] == []


def test_each_group_is_in_the_reference():
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    assert groups - set(GROUPS) == {".", "hydra/job_logging", "hydra/hydra_logging"}
    assert {path.stem for path in CONF.glob("*.yaml")} == {*CONFIGURED, "program", "image_settings"}


@pytest.mark.parametrize("program", [*CONFIGURED, *SCHEMAS])
def test_help_is_at_most_100_columns_wide_and_opens_with_the_usage(program: str):
    text = help_text(program)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert text.startswith(
        f"Usage: {f'python -m benchmarks.{program}' if program in SCHEMAS else f'flowers {program}'} "
    )


def test_settings_have_the_values_that_hydra_composes():
    cfg = flatten(composed("data=folder", "data.root=x").to_dict())
    for name in ("train", "data/folder", "optimizer/adam", "trainer/auto", "model/resnet152"):
        for setting in settings_of(name):
            if setting.default and "$" not in setting.default and setting.key != "data.root":
                assert cfg[setting.key] == yaml.safe_load(setting.default)


def test_the_page_of_the_docs_is_up_to_date():
    page = (CONF.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_page(), "run: python -m flowers.settings.config_reference > docs/configuration.md"
