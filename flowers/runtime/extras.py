"""The packages of optional dependencies."""

import importlib.util


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
        raise ValueError(f"{purpose} needs {', '.join(missing)}: pip install 'flowers[{extra}]'")
