import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.types import QuotedString
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from flowers.settings.config import compose_settings, compose_single, load_config
from flowers.settings.literal_overrides import literal_overrides
from flowers.settings.overrides import check_overrides, hydra_context, last_value, parse_overrides, single_overrides
from flowers.settings.schema.training import TrainSettings

ODD = [
    *(
        "~a",
        "Köln",
        "照片",
        "mum's photos",
        "photos (1)",
        "a,b",
        "a=b",
        "a#b",
        "a&b",
        " a ",
        "{a}",
        "[1]",
        "${x}",
        "a\nb",
    ),
    *("2024_11_30", "1e3", "007", "1_0", "0x10", "12:30:45", "yes", "no", "on", "off", "true", "nan", "a\\b", "a\\'b"),
    *(
        'say "a"',
        "50%",
        "a:b",
        "a@b",
        "a;b",
        "a+b",
        "a$b",
        "choice(a,b)",
        "range(3)",
        "a\\${x}",
        "${",
        "it''s",
        "\\",
        "'",
    ),
    *(
        "'a'b",
        "a, b",
        "s3://bucket/a,b",
        "./null",
        "a!b",
        "a`b",
        "a\tb",
        "${a",
        "$a{b}",
        "%s",
        "a\nb",
        "a\\\\",
        "'a\\'",
    ),
]
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


def has_meaning(name: str) -> bool:
    """Return whether a value that no path is called is null, an interpolation, or in quotes."""
    return name == "null" or "${" in name or name[0] == "~" or (name[0] in "'\"" and name[-1] == name[0])


def resolved(line: str) -> str:
    """Return the value of an override as a configuration has it."""
    (override,) = parse_overrides([line])
    value = override.value()
    value = getattr(value, "text", value)
    if "${" not in str(value).replace("\\${", ""):
        assert last_value([line], override.key_or_group) == OmegaConf.create({"value": value}).value
    return str(OmegaConf.create({"value": value}).value)


@given(NAMES.filter(lambda name: not has_meaning(name)))
def test_literal_overrides_take_any_path_as_it_is(name: str):
    (literal,) = literal_overrides([f"data.root={name}"], ["train"])
    assert resolved(literal) == name
    assert literal_overrides([literal], ["train"]) == [literal]


@pytest.mark.parametrize("name", ODD)
def test_literal_overrides_take_a_path_that_exists_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    for sweeps in (False, True):
        lines = literal_overrides([f"data.root={name}", f"hydra.run.dir={name}/x"], ["train"], sweeps)
        assert literal_overrides(lines, ["train"], sweeps) == lines
        (root,) = single_overrides(parse_overrides(lines)[0])
        assert resolved(root) == name
        assert resolved(lines[1]) == f"{name}/x"
    (photos,) = literal_overrides([f"photos={name}/*.jpg"], ["predict"])
    assert resolved(photos) == f"{name}/*.jpg"


@pytest.mark.parametrize("name", ["mum's photos (1)", "a\\${x}"])
def test_settings_have_the_path_that_exists_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    lines = literal_overrides(["data=folder", f"data.root={name}", f"hydra.run.dir={name}/r"], ["train"])
    composed = compose_settings(check_overrides(lines, "train"), TrainSettings)
    assert (composed.data.root, composed.run_dir) == (name, str(Path(name, "r").resolve()))
    in_python = load_config(["data=folder", f"data.root={name}", f"run_dir={name}/r"])
    assert (in_python.data.root, in_python.run_dir) == (composed.data.root, composed.run_dir)


@pytest.mark.parametrize("key", ["root", "data.path", "dataset"])
def test_a_path_of_an_unknown_key_is_answered_with_the_right_key(key: str):
    lines = literal_overrides(["data=folder", f"{key}=mum's photos (1)"], ["train"])
    folder = shlex.quote("data.root=mum's photos (1)")
    meant = f"{key}: no such key: did you mean data=folder {folder}?"
    with hydra_context(), pytest.raises(ValueError, match=f"^{re.escape(meant)}$"):
        compose_single(lines, TrainSettings)


@pytest.mark.parametrize(("value", "number"), [("0,001", "0.001"), ("1,05", "1.05"), ("0,1", ""), ("1,2", "")])
def test_a_decimal_comma_is_named(value: str, number: str):
    with hydra_context(), pytest.raises(ValueError, match=f"optimizer.lr={value}: expected one value") as error:
        compose_single([f"optimizer.lr={value}"], TrainSettings)
    assert str(error.value).endswith(f"; optimizer.lr={number} is one number" if number else "is a list")


@pytest.mark.parametrize("name", ["2024_11_30", "1e3", "007", "1_0", "0x10", "12:30:45", "yes", "off", "nan", "1"])
def test_literal_overrides_keep_texts(name: str):
    for line in (f"group={name}", f"run_dir={name}", f"hydra.run.dir={name}", f"logger.wandb.project={name}"):
        (literal,) = literal_overrides([line], ["train"])
        assert isinstance(parse_overrides([literal])[0].value(), (str, QuotedString))
        assert resolved(literal) == name
    (runs,) = literal_overrides([f"runs=[{name},'a,b', c d]"], ["compare"])
    values = parse_overrides([runs])[0].value()
    assert isinstance(values, list)
    assert [str(getattr(value, "text", value)) for value in values] == [name, "a,b", "c d"]


def test_settings_have_texts_as_they_are_and_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = ["data=folder", "data.root=~/my photos", "run_dir=~/1_0", "data.corrections='~/c.csv'", "group=12:30:45"]
    composed = load_config([*lines, "logger=mlflow", "logger.mlflow.experiment_name=007", "data.split_file=1e3"])
    assert composed.data.root == f"{tmp_path}/my photos"
    assert composed.data.corrections == f"{tmp_path}/c.csv"
    assert composed.run_dir == str(tmp_path.resolve() / "1_0")
    assert composed.group == "12:30:45"
    assert composed.to_dict()["logger"]["mlflow"]["experiment_name"] == "007"
    assert composed.to_dict()["data"]["split_file"] == "1e3"


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("data.root=a,b", ["a", "b"]),
        ("data.root=2024_1,1e3", ["2024_1", "1e3"]),
        ("data.root='a,b',c", ["a,b", "c"]),
        ("data.root=mum's,x=y", ["mum's", "x=y"]),
        ("data.root=choice(a,b)", ["a", "b"]),
        ("group=1,02", ["1", "02"]),
    ],
)
def test_commas_separate_the_values_of_a_sweep(
    line: str, values: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (literal,) = literal_overrides([line], ["train"], sweeps=True)
    (override,) = parse_overrides([literal])
    assert [str(getattr(each, "text", each)) for each in override.sweep_iterator()] == values


def test_values_with_a_meaning_keep_it():
    lines = ["data.split_file=null", "data.root=${oc.env:HOME}/x", "data.root='a b'", "seed=1_0", "experiment=report"]
    assert literal_overrides([*lines, "~logger", "group=a,b"], ["train"]) == [*lines, "~logger", "group=a,b"]
