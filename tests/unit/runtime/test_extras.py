import importlib.util
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from flowers.runtime.extras import DISTRIBUTION, install_command, require_extra

LINES = [
    "torch>=2.11",
    "captum>=0.9; extra == 'explain'",
    f"{DISTRIBUTION}[explain]; extra == 'app'",
    "fastapi>=0.165; extra == 'app'",
    "mkdocstrings[python]>=0.30; extra == 'docs'",
]


def test_install_command_names_packages_and_never_this_distribution(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "requires", lambda name: LINES)
    assert install_command("app") == "pip install 'captum>=0.9' 'fastapi>=0.165'"
    assert install_command("docs") == "pip install 'mkdocstrings[python]>=0.30'"


def test_install_command_of_a_checkout_that_was_never_installed(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert install_command("app") == "pip install -e '.[app]' in the folder of the project"


def test_require_extra_names_the_packages_with_their_bounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(ValueError, match=r"^a heat map needs captum: pip install 'captum>=[0-9.]+'$"):
        require_extra("a heat map", "explain", "captum")


def test_no_requirement_is_found_under_the_name_of_a_foreign_project():
    assert all(Requirement(line).name != "flowers" for line in metadata.requires(DISTRIBUTION) or [])
