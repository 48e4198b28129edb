import importlib
from pathlib import Path

import pytest

import flowers
from flowers.__main__ import list_programs
from flowers.settings.config_reference import help_text, summary_of
from flowers.settings.programs import CONFIGURED, PROGRAMS, all_programs, program_of, settings_type
from flowers.settings.schema.training import TrainSettings
from flowers.settings.schema.values import Group
from tests.helpers import install

ROOT = Path(flowers.__file__).parent


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_of_the_table_has_a_main_and_a_summary(name: str):
    assert callable(importlib.import_module(PROGRAMS[name].module).main)
    assert summary_of(PROGRAMS[name])
    if name in CONFIGURED:
        settings = settings_type(name)
        assert issubclass(settings, Group)
        assert program_of(settings) == name


def test_the_table_names_each_module_that_is_a_program():
    modules = {f"flowers.{path.stem}" for path in ROOT.glob("*.py")} - {
        *("flowers.__init__", "flowers.__main__", "flowers.cli", "flowers.command_hints", "flowers.given_paths")
    }
    assert {each.module for each in PROGRAMS.values()} == modules


def test_a_program_of_another_package_is_listed_and_explained_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = {
        "meadow/__init__.py": "raise AssertionError('imported')",
        "meadow/conf/count.yaml": "# Count the photos: flowers count photos=FOLDER\nphotos: ???  # folder\n",
    }
    programs = {"count": "meadow.count:CountSettings", "train": "os:sep", "broken": "no.such:Thing"}
    install(tmp_path, {"programs": programs}, files)
    monkeypatch.syspath_prepend(tmp_path)
    assert "  count          Count the photos\n" in list_programs()
    assert help_text("count").startswith("Usage: flowers count [key=value …] (or python -m meadow.count …)\n")
    assert all_programs()["train"] == PROGRAMS["train"]
    assert program_of(TrainSettings) == "train"
    with pytest.raises(ValueError, match=r"no.such:Thing cannot be imported: ModuleNotFoundError: No module"):
        settings_type("broken")
    with pytest.raises(ValueError, match="cuont: no such program: expected one of train, "):
        settings_type("cuont")


def test_program_of_refuses_settings_of_no_program():
    with pytest.raises(ValueError, match=r"values:Group: no program with these settings: see flowers.programs"):
        program_of(Group)
