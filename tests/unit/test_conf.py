import inspect

import pytest
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from flowers.data.datamodule import ImageDataModule
from flowers.models.classifier import ImageClassifier
from flowers.runtime.config import CONF
from flowers.runtime.hardware import resolve_trainer_config
from tests.helpers import configuration

OPTIONS = [
    f"{group.name}={option.stem}"
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name != "hydra"
    for option in sorted(group.glob("*.yaml"))
]


def composed(*overrides: str) -> DictConfig:
    return configuration("run_dir=/run", *overrides)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_each_of_its_keys_has_a_reader(option: str):
    cfg = composed(option, *(["data.root=/photos"] if option in ("data=folder", "data=shards") else []))
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert set(cfg.data) <= set(inspect.signature(ImageDataModule).parameters)
    assert set(cfg.model) <= set(inspect.signature(ImageClassifier).parameters)
    assert set(cfg.trainer) <= set(inspect.signature(Trainer).parameters)
    assert callable(instantiate(cfg.optimizer))
    assert callable(instantiate(cfg.scheduler))
    assert all(instantiate(callback) for callback in cfg.callbacks.values())


def test_the_reports_settings_are_the_defaults():
    defaults, report = composed(), composed("experiment=report")
    assert defaults == report
    assert defaults.model.architecture == "resnet152"
    assert defaults.optimizer._target_ == "torch.optim.Adam"
    assert (defaults.optimizer.lr, defaults.finetune.backbone_lr, defaults.data.batch_size) == (1e-4, 1e-4, 64)
    assert defaults.head.epochs + defaults.finetune.epochs == 50
    assert (defaults.data.image_size, defaults.data.val_fraction) == (224, 0.2)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_an_experiment_is_a_short_delta_that_opens_with_its_command(name: str):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[1] == f"# python -m flowers.train experiment={name}"
    assert sum(bool(line.strip()) and not line.startswith("#") for line in lines) <= 15


def test_automatic_settings_become_definite_and_given_ones_stay(monkeypatch: pytest.MonkeyPatch):
    automatic = {"accelerator": "cpu", "precision": "auto", "deterministic": "auto", "devices": 1}
    for native, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda native=native: {"avx512_bf16": native})
        definite = resolve_trainer_config(automatic)
        assert definite == {"accelerator": "cpu", "precision": precision, "deterministic": True, "devices": 1}
        assert resolve_trainer_config(definite) == definite
