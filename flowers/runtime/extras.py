"""The packages of optional dependencies."""

import importlib.util
import shlex
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "flowers-finetune"  # on the public index, the name `flowers` is that of another project


def require_extra(purpose: str, extra: str, *packages: str) -> None:
    """Check that the packages of an optional dependency are installed, without importing them.

    Args:
        purpose: What needs them, for the message: "a search".
        extra: The name of the extra in pyproject.toml.
        packages: Top-level modules.

    Raises:
        ValueError: One of them is missing.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{purpose} needs {', '.join(missing)}: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra, whatever this package was installed from.

    The packages and their versions are those that the installed metadata name.
    """
    from packaging.requirements import Requirement  # takes 25 ms, and only this line needs it

    try:
        needed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return f"pip install -e '.[{extra}]' in the folder of the project"
    return shlex.join(["pip", "install", *_packages(needed, extra)])


def _packages(needed: "list[Requirement]", extra: str) -> list[str]:
    found = []
    for each in needed:
        if each.marker and "extra" in str(each.marker) and each.marker.evaluate({"extra": extra}):
            if each.name == DISTRIBUTION:
                found += [line for name in sorted(each.extras) for line in _packages(needed, name)]
            else:
                extras = f"[{','.join(sorted(each.extras))}]" if each.extras else ""
                found.append(f"{each.name}{extras}{each.specifier}")
    return found
