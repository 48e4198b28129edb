"""Where the configuration lies and where verdicts are kept between runs."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# Beside the package in a checkout, inside it in a wheel; absolute, since Hydra resolves a relative one from the caller.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())


def cache() -> Path:
    """The folder for what is computed once and kept: `$FLOWERS_CACHE`, or `flowers` in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FLOWERS_CACHE") or user / "flowers")
