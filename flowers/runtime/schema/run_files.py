"""What the files of a run folder may hold. A run folder of a stranger is data: nothing in it is imported or called."""

import re
from typing import Annotated, TypeGuard

from pydantic import AfterValidator, Field, RootModel

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def is_plain_name(value: object) -> TypeGuard[str]:
    """Return whether a value may go into requests and paths as it is: it leaves no folder, and ends no quotation."""
    return isinstance(value, str) and _PLAIN_NAME.fullmatch(value) is not None


def _check_plain_name(value: str) -> str:
    if not is_plain_name(value):
        raise ValueError
    return value


PlainName = Annotated[str, AfterValidator(_check_plain_name)]


class TrackerIds(RootModel[Annotated[dict[PlainName, PlainName | None], Field(max_length=16)]]):
    """trackers.json: the id of a run by the name of the tracker."""
