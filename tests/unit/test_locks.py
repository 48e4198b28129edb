"""The locks hold what pyproject.toml asks for."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def locked(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line.partition("\\")[0].strip()) for line in lines if re.match(r"[A-Za-z0-9]", line)]


def requested(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        for each in map(Requirement, project["optional-dependencies"][extra]):
            found += requested(*each.extras) if each.name == "flowers-finetune" else [each]
    return found


@pytest.mark.parametrize(("name", "extras"), [("requirements.lock", ()), ("requirements-dev.lock", ("dev",))])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_has_a_version_of_each_dependency_that_fits(name: str, extras: tuple[str, ...], python: str):
    environment = {"python_version": python, "python_full_version": f"{python}.0"}  # the rest is as here
    pins = {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in locked(name)
        if each.marker is None or each.marker.evaluate(environment)
    }
    for each in requested(*extras):
        version = pins.get(canonicalize_name(each.name))
        assert version, f"{each} is not in {name}: make lock"
        assert each.specifier.contains(version), f"{name} has {version}, pyproject.toml wants {each}: make lock"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_has_hashes_and_names_no_host(name: str):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    for line, following in pairwise(lines):
        if re.match(r"[A-Za-z0-9]", line):
            assert following.startswith("    --hash=sha256:"), line
    assert not [line for line in lines if "://" in line or line.startswith("-")]
