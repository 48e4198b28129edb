"""The name that was probably meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """`": did you mean X?"` with the valid name nearest to `name`, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""
