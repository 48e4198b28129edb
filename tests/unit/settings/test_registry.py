import os
import sys
from pathlib import Path

import pytest

from flowers.settings.registry import (
    add_working_directory,
    conf_folders,
    find_parts,
    load_part,
    load_parts,
    package_of,
)
from tests.helpers import install

BROKEN = "import no_such_package_at_all\n"
_WRAPPED = "try:\n    import broken_part\nexcept ImportError as error:\n    raise OSError('no\\nbulb') from error\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which Python looks for packages."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    return site


def test_find_parts_imports_nothing_and_names_the_package(site: Path):
    install(site, {"losses": {"mine": "broken_part:loss"}, "metrics": {"kappa": "os:sep"}}, {"broken_part.py": BROKEN})
    found = find_parts("losses")
    assert [(entry.name, entry.value, package_of(entry)) for entry in found.values()] == [
        ("mine", "broken_part:loss", "garden")
    ]
    assert "broken_part" not in sys.modules


def test_load_part_prints_the_cause_of_an_import_error_and_its_place(site: Path):
    files = {"broken_part.py": BROKEN, "outer_part.py": _WRAPPED}
    install(site, {"losses": {"mine": "outer_part:loss", "none": "os:no_such_name"}}, files)
    found = find_parts("losses")
    with pytest.raises(
        ValueError, match=r"mine of flowers.losses, from the package garden: outer_part:loss cannot"
    ) as error:
        load_part(found["mine"])
    expected = "OSError: no bulb; because of ModuleNotFoundError: No module named 'no_such_package_at_all'"
    expected += f" ({site / 'broken_part.py'}, line 1)"
    assert str(error.value).endswith(expected)
    with pytest.raises(ValueError, match="AttributeError: module 'os' has no attribute 'no_such_name'"):
        load_part(found["none"])


def test_load_part_refuses_a_name_that_two_packages_or_the_project_have(site: Path):
    for name in ("garden", "meadow"):
        install(site, {"losses": {"mine": "os:sep"}, "metrics": {"bad name": "os:sep"}}, {}, name)
    with pytest.raises(ValueError, match="from the package garden: meadow has a part of this name, too: uninstall"):
        load_part(find_parts("losses")["mine"])
    with pytest.raises(ValueError, match="flowers has a part of this name, too"):
        load_part(find_parts("losses")["mine"], ["mine"])
    with pytest.raises(ValueError, match=r"bad name of flowers.metrics, .*: expected a name of at most 128 letters"):
        load_part(find_parts("metrics")["bad name"])


def test_load_parts_refuses_what_is_no_part_or_has_another_name(site: Path):
    install(site, {"metrics": {"mine": "os:sep"}}, {})
    assert load_parts("metrics", lambda part: "mine", []) == [os.sep]
    with pytest.raises(ValueError, match="os:sep is named /, its entry point mine: expected one name"):
        load_parts("metrics", str, [])
    with pytest.raises(ValueError, match=r"os:sep is no part for flowers.metrics: .* no attribute 'name'"):
        load_parts("metrics", lambda part: part.name, [])


def test_the_working_directory_registers_nothing_but_is_searched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, {"losses": {"mine": "os:sep"}}, {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for _ in range(2):
        add_working_directory()
        assert sys.path[0] == str(tmp_path)
        assert sys.path.count(str(tmp_path)) == 1
        assert find_parts("losses") == {}
    sys.path.append(str(tmp_path))  # as PYTHONPATH=/packages: does
    assert find_parts("losses") == {}


def test_conf_folders_are_those_beside_the_parts(site: Path):
    files = {"meadow/__init__.py": "", "meadow/conf/loss/mine.yaml": "", "hedge.py": "", "conf/a.yaml": ""}
    install(site, {"losses": {"mine": "meadow.losses:loss", "other": "hedge:loss", "third": "no_such:loss"}}, files)
    assert [folder for folder in conf_folders() if folder.is_relative_to(site)] == [site / "meadow" / "conf"]
    assert "meadow" not in sys.modules
