import re

import pytest

from flowers.settings.config_reference import options_of, read_config_file
from flowers.settings.other_tools import _OPTIONS, _PROGRAMS, _SETTINGS, our_option, our_overrides, our_program
from flowers.settings.overrides import check_overrides
from flowers.settings.programs import CONFIGURED, PROGRAMS, settings_type
from flowers.settings.suggestions import suggest_key
from flowers.settings.validation import key_names

TRAIN = {*key_names(settings_type("train")), *read_config_file("train").options}
PREDICT = set(key_names(settings_type("predict")))


@pytest.mark.parametrize("meaning", _SETTINGS)
def test_each_meaning_of_a_word_is_a_setting_of_a_program(meaning: str):
    values = {"data.root={}": ".", "model={}": "resnet18", "optimizer={}": "sgd", "scheduler={}": "step"}
    values |= {"loss={}": "focal", "logger={}": "csv"}
    overrides = [part.replace("{}", values.get(part, "1")) for part in meaning.split()]
    key = overrides[0].partition("=")[0]
    known = {name: {*key_names(settings_type(name)), *read_config_file(name).options} for name in CONFIGURED}
    program = "train" if key.startswith(("trainer.", "hydra.")) else next(each for each in known if key in known[each])
    assert check_overrides(overrides, program)


@pytest.mark.parametrize("meaning", _PROGRAMS)
def test_each_meaning_of_a_program_is_one(meaning: str):
    assert meaning.split()[0] in PROGRAMS or meaning[0] in "!-"


@pytest.mark.parametrize("group", _OPTIONS)
def test_each_meaning_of_an_option_is_one(group: str):
    assert {*_OPTIONS[group].values()} <= {*options_of(group), "none"}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", "0.01", ["optimizer.lr=0.01"]),
        ("--learning-rate", "0.01", ["optimizer.lr=0.01"]),
        ("training.num_epochs", "5", ["finetune.epochs=5"]),
        ("finetune.lr", "0.01", ["finetune.backbone_lr=0.01"]),
        ("pretrained", "False", ["model.weights=null"]),
        ("pretrained", "true", ["model.weights=DEFAULT"]),
        ("device", "cpu", ["trainer.accelerator=cpu"]),
        ("device", "cuda:1", ["trainer.accelerator=gpu", "trainer.devices=[1]"]),
        ("device", "2,3", ["trainer.accelerator=gpu", "trainer.devices=[2,3]"]),
        ("gpu", "0", ["trainer.accelerator=gpu"]),
        ("freeze", "true", ["experiment=head_only"]),
        ("freeze", "false", ["head.epochs=0"]),
        ("amp", "false", []),
        ("data_dir", "my photos", ["data=folder", "data.root=my photos"]),
        ("split", "0.8", ["data.val_fraction=0.2"]),
        ("val-split", "0.3", ["data.val_fraction=0.3"]),
        ("learningRate", "0.3", ["optimizer.lr=0.3"]),
        ("precision", "fp16", ["trainer.precision=16-mixed"]),
        ("gpus", "all", ["trainer.devices=auto"]),
        ("patience", "3", ["callbacks=early_stopping", "callbacks.early_stopping.patience=3"]),
        ("nonsense", "1", []),
    ],
)
def test_our_overrides_of_training(key: str, value: str, expected: list[str]):
    assert our_overrides(key, value, TRAIN) == expected


def test_our_overrides_are_those_of_the_program():
    assert our_overrides("checkpoint", "runs/a", TRAIN) == ["resume=runs/a"]
    assert our_overrides("checkpoint", "runs/a", PREDICT) == ["run=runs/a"]
    assert our_overrides("source", "new", PREDICT) == ["photos=new"]
    assert our_overrides("device", "cuda:1", PREDICT) == ["accelerator=gpu"]
    assert our_overrides("lr", "1", PREDICT) == []


def test_suggest_key_prefers_the_meaning_of_a_word_to_its_spelling():
    assert suggest_key("epochs", TRAIN, "5") == ": did you mean finetune.epochs=5?"
    assert suggest_key("epochs", TRAIN) == ": did you mean finetune.epochs?"
    assert suggest_key("path", TRAIN, "a b") == ": did you mean data=folder 'data.root=a b'?"
    assert "sub-folders of data.root" in suggest_key("num_classes", TRAIN, "5")
    assert suggest_key("optimizer.wieght_decay", TRAIN) == ": did you mean optimizer.weight_decay?"


def test_our_option_takes_a_path_for_the_root_or_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert our_option("data", "photos") == ["data=folder", "data.root=photos"]
    assert our_option("data", "elsewhere") == []
    assert our_option("data", "a/b") == ["data=folder", "data.root=a/b"]
    assert our_option("model", "a/b.pth") == ["model.weights=a/b.pth"]
    assert our_option("trainer", "cuda") == ["trainer=gpu"]
    assert our_option("optimizer", "lion") == []


@pytest.mark.parametrize(("word", "program"), [("fit", "train"), ("Eval", "evaluate"), ("serve", "app"), ("x", None)])
def test_our_program(word: str, program: str | None):
    assert our_program(word) == program


def test_no_word_of_another_tool_is_a_key_of_training():
    # Such a word would be answered as if it were wrong.
    words = {word for words in _SETTINGS.values() for word in words.split() if re.fullmatch(r"\w+\.[\w.]+", word)}
    assert not words & TRAIN
