"""Types of settings, with their ranges."""

import re
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
# Whole numbers count batches, fractions are shares of an epoch.
Batches = Annotated[int, Field(ge=1)] | Share
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Device = Literal["cpu", "gpu", "cuda", "mps"]
# Others of Lightning are left out: with bf16-true and 16-true the weights are too coarse for small learning rates.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
OnCorrupt = Literal["error", "skip"]
TestTimeAugmentation = Literal["none", "flip", "five_crop"]
ImageSide = Annotated[int, Field(ge=1, le=4096)]
Interpolation = Literal["bilinear", "bicubic"]
Balance = Literal["none", "weights", "sampler"]
Engine = Literal["pytorch", "int8"]


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?|(\d+):(\d\d):(\d\d):(\d\d)")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as 90s, 45m, 1h30m, 2d, or DD:HH:MM:SS as Lightning has it.

    Raises:
        ValueError: It is no such text, or 0.
    """
    match = _DURATION.fullmatch(text)
    parts = [int(part or 0) for part in match.groups()] if match else []
    seconds = sum(part * unit for part, unit in zip(parts, 2 * (86400, 3600, 60, 1), strict=False))
    if not seconds:
        raise ValueError(f"{text}: expected a duration")
    return float(seconds)


def check_duration(text: str) -> str:
    """Return a text that `parse_duration` reads."""
    parse_duration(text)
    return text


class Expected(NamedTuple):
    """What a setting must be, as the error message says it, if a validator checks it."""

    text: str | Callable[[], str]


def check_no_password(address: str) -> str:
    """Return an address without a password, which would be stored with the settings of a run."""
    if urlsplit(address).password:
        raise ValueError
    return address


def check_ascending(values: list[float]) -> list[float]:
    """Return values in ascending order."""
    if values != sorted(values):
        raise ValueError
    return values


PAIR = Field(min_length=2, max_length=2), AfterValidator(check_ascending)


class Group(BaseModel):
    """A group of settings. A key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Target(Group):
    """A group that names what it calls (`_target_`); its other keys are the arguments, see `check_targets`."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)
