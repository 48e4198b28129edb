"""The schemas accept each file in conf/ and refuse wrong ones, at the line of the mistake."""

from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from omegaconf import OmegaConf

from flowers.settings.config_reference import CONF
from flowers.settings.json_schema import KINDS, config_files, file_name, file_pattern, json_schema, vscode_settings

# A kind of file, its content, the line of the mistake (from 1), and a part of the message.
WRONG = [
    ("experiment", "optimizer:\n  lr: -1\n", 2, "-1 is less than or equal to the minimum of 0"),
    ("experiment", "finetune:\n  epochs: 1\n  backbone_lrr: 1\n", 3, "'backbone_lrr'"),
    ("experiment", "head: {epochs: 1}\nfinetuning: {epochs: 1}\n", 2, "'finetuning'"),
    ("experiment", "defaults:\n  - override /model: resnet50\n  - override /scheduler: cosinus\n", 3, "'cosinus'"),
    ("experiment", "defaults:\n  - override /optimiser: adam\n", 2, "'override /optimiser'"),
    ("experiment", "head:\n  epochs: 0\n  init: probes\n", 3, "'probes'"),
    ("debug", "trainer:\n  limit_val_batches: 0\n", 2, "0"),
    ("data", "root: ???\nval_fraction: 1.5\n", 2, "1.5"),
    ("data", "root: ???\non_corupt: skip\n", 2, "'on_corupt'"),
    ("data", "crop_scale:\n  - 0.5\n", 2, "too short"),
    ("data", "root: a\ncrop_ratio: [0, 1]\n", 2, "0 is less than or equal"),
    ("train", "defaults: [_self_]\nseed: x\n", 2, "'x'"),
    ("train", "hydra: {}\nsteps: 3\n", 2, "'steps'"),
    ("trainer", "accelerator: cpu\nprecision: fp16\n", 2, "'fp16'"),
    ("export", "output: ???\nformats: [onxx]\n", 2, "'onxx'"),
    ("callbacks", "defaults: [default]\nema:\n  decay: 1\n", 3, "1 is greater than or equal to"),
    ("model", "architecture: a\nweights: 3\n", 2, "3 is not of type"),
    ("model", "model:\n  arch: a\n", 2, "'arch'"),
    ("recipe", "base: []\nbest: x\n", 2, "'x'"),
    ("hydra/job_logging", "version: 1\nhandler: {}\n", 2, "'handler'"),
]


@cache
def validator(kind: str) -> Any:
    schema = json_schema(kind)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def line_of(error: Any, text: str) -> int:
    """The line of the value that a mistake is about, or of the key if it is unknown."""
    node = yaml.compose(text, yaml.SafeLoader)
    path = list(error.absolute_path)
    if error.validator == "additionalProperties":
        path.append(next(key for key in error.instance if f"'{key}'" in error.message))
    for step in path:
        if isinstance(node, yaml.MappingNode):
            key, value = next(pair for pair in node.value if pair[0].value == step)
            node = key if step == path[-1] and error.validator == "additionalProperties" else value
        else:
            assert isinstance(node, yaml.SequenceNode)
            node = node.value[step]
    assert node is not None
    return int(node.start_mark.line) + 1


@pytest.mark.parametrize(("name", "kind"), list(config_files()), ids=lambda each: each)
def test_schema_accepts_each_file_of_conf(name: str, kind: str):
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=False)
    assert [error.message for error in validator(kind).iter_errors(content)] == []


@pytest.mark.parametrize(("kind", "text", "line", "message"), WRONG, ids=lambda each: str(each)[:30])
def test_schema_refuses_a_wrong_file_at_its_line(kind: str, text: str, line: int, message: str):
    content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    (error,) = validator(kind).iter_errors(content)
    assert message in error.message
    assert line_of(error, text) == line


def test_schema_accepts_interpolations_and_values_that_are_missing():
    for text in ("optimizer: {lr: '${x}'}", "seed: ???", "head: {init: '${oc.env:INIT}'}", "trainer: {devices: 2}"):
        assert validator("experiment").is_valid(yaml.safe_load(text))


def test_schema_has_the_texts_and_the_defaults_of_conf():
    head = json_schema("train")["properties"]["head"]["properties"]
    assert head["epochs"]["default"] == 5
    assert head["epochs"]["description"].startswith("epochs of the head stage")
    assert "default" not in json_schema("experiment")["properties"]["optimizer"]["properties"]["lr"]  # three options
    assert "brightness" in json_schema("image_settings")["properties"]


def test_each_file_of_conf_has_a_schema_of_its_own():
    assert {kind for _, kind in config_files()} <= {*KINDS}
    patterns = vscode_settings("schemas")["yaml.schemas"]
    assert patterns["schemas/data-augmentation.json"] == "conf/data/augmentation/*.yaml"
    assert len({*map(file_name, KINDS)}) == len({*map(file_pattern, KINDS)}) == len(KINDS)
    with pytest.raises(ValueError, match=r"kind=dat: expected one of train, .*data"):
        json_schema("dat")
