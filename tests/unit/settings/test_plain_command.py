"""Composition without Hydra gives what Hydra gives, or leaves the command to it."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowers.settings.config import load_config
from flowers.settings.overrides import parse_overrides
from flowers.settings.plain_command import plain_values
from flowers.settings.programs import settings_type
from flowers.settings.validation import check_values

PLAIN = ("evaluate", "predict", "app", "suggest")  # those that start without a value


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_are_the_defaults_that_hydra_composes(name: str):
    values = plain_values(name, [])
    assert values is not None
    assert check_values(values, settings_type(name)).to_dict() == load_config([], name).to_dict()


def test_plain_values_replace_the_defaults():
    values = plain_values("predict", ["run=outputs/a-1", "photos=a.jpg", "confidence=0.5", "num_workers=2", "run=b"])
    assert values is not None
    assert (values["run"], values["photos"], values["confidence"], values["num_workers"]) == ("b", "a.jpg", 0.5, 2)


# What a value is to Hydra's grammar: the same value, or plain_values leaves it to Hydra.
@settings(max_examples=200, deadline=None)
@given(st.text("aetinfINrul/._-0159E", min_size=1, max_size=7))
@example("2024_11_30")
@example("1e5")
@example("-inf")
@example("./1e5")
@example("007")
@example("-0")
@example("a/")
def test_plain_values_read_a_value_as_hydra_does(text: str):
    values = plain_values("predict", [f"root={text}"])
    if values is not None:
        (override,) = parse_overrides([f"root={text}"])
        assert not override.is_sweep_override()
        assert (values["root"], type(values["root"])) == (override.value(), type(override.value()))


@pytest.mark.parametrize(
    "line",
    [
        *("rot=x", "+root=x", "~root", "root=", "root=a,b", "root='a'", "root=~/a", "root=${oc.env:HOME}"),
        *("photos=[a,b]", "root=a b", "root=Köln", "root=a:b", "hydra.run.dir=x", "root.a=1", "root=glob(*)"),
    ],
)
def test_plain_values_leave_all_else_to_hydra(line: str):
    assert plain_values("predict", [line]) is None


@pytest.mark.parametrize("name", ["train", "audit", "sweep", "explain", "export", "no_such_program"])
def test_plain_values_leave_programs_with_groups_or_missing_values_to_hydra(name: str):
    assert plain_values(name, []) is None


def test_a_prediction_is_composed_without_hydra(tmp_path: Path):
    code = (
        "import sys; sys.argv[1:] = ['run=a', 'photos=b.jpg']\n"
        "from flowers.cli import program\n"
        "from flowers.settings.schema.programs import PredictSettings\n"
        "program(lambda settings: print(settings.run, settings.photos), PredictSettings)()\n"
        "assert not {'hydra', 'omegaconf', 'torch'} & {*sys.modules}"
    )
    for name in ("a", "b.jpg"):
        (tmp_path / name).touch()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("a b.jpg\n", "")
