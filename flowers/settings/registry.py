"""Parts of other packages, by the names of their entry points: `[project.entry-points."flowers.losses"]`.

The names are read from the metadata of installed packages: nothing is imported before a part is used, and a part is
never looked up by the path of a module that a file names. What lies in the working directory registers nothing.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

from flowers.runtime.text import one_line

KINDS = ("backbones", "losses", "metrics", "schedules", "sources", "exporters", "trackers", "programs")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

_entered: list[EntryPoint] = []


def enter(kind: str, parts: dict[str, str]) -> None:
    """Register parts as the entry points of a package do: for packages that are not installed.

    Args:
        kind: One of `KINDS`.
        parts: "module:attribute" by name.
    """
    assert kind in KINDS, f"{kind}: expected one of {', '.join(KINDS)}"
    _entered.extend(EntryPoint(name, value, f"flowers.{kind}") for name, value in parts.items())


def find_parts(kind: str) -> dict[str, EntryPoint]:
    """Return the parts of a kind by name. Nothing is imported."""
    found: dict[str, EntryPoint] = {}
    for entry in _all():
        if entry.group == f"flowers.{kind}":
            found.setdefault(entry.name, entry)
    return found


def check_part(entry: EntryPoint, taken: Collection[str] = ()) -> None:
    """Check the name of a part.

    Args:
        entry: From `find_parts`.
        taken: Names that the project itself has.

    Raises:
        ValueError: It is no name, or that of another part.
    """
    where = _where(entry)
    if not _NAME.fullmatch(entry.name):
        raise ValueError(f"{one_line(where)}: expected a name of at most 128 letters, digits, points, dashes and _")
    same = [each for each in _all() if (each.group, each.name) == (entry.group, entry.name)]
    if entry.name in taken or len(same) > 1:
        rival = "flowers" if entry.name in taken else package_of(same[1])
        raise ValueError(f"{where}: {rival} has a part of this name, too: uninstall one of the packages")


def load_part(entry: EntryPoint, taken: Collection[str] = ()) -> Any:
    """Import a part.

    Args:
        entry: From `find_parts`.
        taken: Names that the project itself has.

    Raises:
        ValueError: It cannot be imported; or see `check_part`.
    """
    check_part(entry, taken)
    try:
        return entry.load()
    except Exception as error:  # an import runs code, which may raise anything
        raise ValueError(f"{_where(entry)}: {entry.value} cannot be imported: {import_problem(error)}") from error


def load_parts(kind: str, name_of: Callable[[Any], str], taken: Collection[str]) -> list[Any]:
    """Import all parts of a kind.

    Args:
        kind: One of `KINDS`.
        name_of: Returns the name of a part, which is that of its entry point.
        taken: Names that the project itself has.

    Raises:
        ValueError: See `load_part`; or a part has another name than its entry point.
    """
    loaded = []
    for name, entry in sorted(find_parts(kind).items()):
        part = load_part(entry, taken)
        try:
            own = name_of(part)
        except AttributeError as error:
            raise ValueError(f"{entry.value} is no part for {entry.group}: {error}") from error
        if own != name:
            raise ValueError(f"{entry.value} is named {own}, its entry point {name}: expected one name")
        loaded.append(part)
    return loaded


def package_of(entry: EntryPoint) -> str:
    """Return the name of the package that registers a part, as one installs it."""
    return str(entry.dist.name) if entry.dist is not None else entry.module.partition(".")[0]


def conf_folders() -> list[Path]:
    """Return the folders conf/ of the packages that register parts: a package is not imported to find it."""
    names = dict.fromkeys(entry.module.partition(".")[0] for entry in _all())
    specs = [importlib.util.find_spec(name) for name in names]
    packages = [path for spec in specs if spec is not None for path in spec.submodule_search_locations or ()]
    return [Path(path, "conf") for path in packages if Path(path, "conf").is_dir()]


def find_object(path: str) -> Any:
    """Import what a dotted path of the user's own settings names, such as "my_package.losses.focal"."""
    first, *names = path.split(".")
    found: Any = importlib.import_module(first)
    for number, name in enumerate(names, 2):
        if isinstance(found, ModuleType) and not hasattr(found, name):
            importlib.import_module(".".join(path.split(".")[:number]))
        found = getattr(found, name)
    return found


def import_problem(error: BaseException) -> str:
    """Return in one line why an import failed: the error, those it comes from, and where the first was raised."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    texts = [f"{type(each).__name__}: {' '.join(str(each).split())}" for each in chain]
    frames = [each for each in traceback.extract_tb(chain[-1].__traceback__) if each.filename.endswith(".py")]
    is_own = frames and "importlib" not in Path(frames[-1].filename).parts and frames[-1].filename != __file__
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if is_own else ""
    return one_line("; because of ".join(texts) + place)


def add_working_directory() -> None:
    """Let imports look into the working directory first, as `python -m` does, also for a console command."""
    if not sys.flags.safe_path and sys.path[:1] not in ([""], [_working_directory()]):
        sys.path.insert(0, _working_directory())


def _where(entry: EntryPoint) -> str:
    return f"{entry.name} of {entry.group}, from the package {package_of(entry)}"


def _all() -> tuple[EntryPoint, ...]:
    return (*_entered, *_installed(_search_path()))


def _working_directory() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return ""


def _search_path() -> tuple[str, ...]:
    """Return where packages are installed: not in the working directory, also where PYTHONPATH has an empty part."""
    here = _working_directory()
    return tuple(path for path in sys.path if path not in ("", here))


@cache
def _installed(search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    groups = {f"flowers.{kind}" for kind in KINDS}
    found: dict[str, list[EntryPoint]] = {}
    for package in distributions(path=list(search_path)):
        if entries := [entry for entry in package.entry_points if entry.group in groups]:
            found.setdefault(package.name, entries)  # of two versions of a package, the first one is imported
    return tuple(entry for entries in found.values() for entry in entries)
