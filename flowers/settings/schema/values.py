"""Types of settings, with their ranges."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Megapixels = Annotated[float, Field(gt=0, le=4295)]  # at most the largest JPEG, 65,535 x 65,535 pixels
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
# Whole numbers count batches, fractions are shares of an epoch.
Batches = Annotated[int, Field(ge=1)] | Share
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Device = Literal["cpu", "gpu", "cuda", "mps"]
# Others of Lightning are left out: with bf16-true and 16-true the weights are too coarse for small learning rates.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
OnCorrupt = Literal["error", "skip"]
Layout = Literal["auto", "classes", "splits", "subfolders"]
TestTimeAugmentation = Literal["none", "flip", "five_crop"]
ImageSide = Annotated[int, Field(ge=1, le=4096)]
Interpolation = Literal["bilinear", "bicubic"]
BitDepth = Literal["auto", 8, 10, 12, 14, 16]
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


def expand_home(text: str) -> str:
    """Return a path with the home folder in place of `~`, unless there is a folder of that name."""
    return text if os.path.lexists(text) else os.path.expanduser(text)  # noqa: PTH111  # an address stays as it is


FilePath = Annotated[str, Field(min_length=1), AfterValidator(expand_home)]


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


GROUP_PATTERN = "re:"
DELIMITED, JSON_LINES = (".csv", ".tsv", ".tab", ".txt"), (".jsonl", ".ndjson")
PARQUET = ".parquet"
TABLE_SUFFIXES = (*DELIMITED, *JSON_LINES, PARQUET)  # of files that are tables


def check_group_pattern(text: str) -> str:
    """Return `re:` and a regular expression that has a group."""
    try:
        is_pattern = text.startswith(GROUP_PATTERN) and re.compile(text.removeprefix(GROUP_PATTERN)).groups > 0
    except (re.error, RecursionError, OverflowError):
        is_pattern = False
    if not is_pattern:
        raise ValueError
    return text


def check_group_column(text: str) -> str:
    """Return the name of a column, or what `check_group_pattern` returns."""
    return check_group_pattern(text) if text.startswith(GROUP_PATTERN) or not text else text


_PATTERN_TEXT = "or re: and a regular expression with a group in parentheses, such as 're:^([^_]+)_'"
Duplicates = Literal["auto", "exact", "none"]
GroupBy = Annotated[
    Duplicates | Annotated[str, AfterValidator(check_group_pattern)],
    Expected(f"one of auto, exact, none, {_PATTERN_TEXT}"),
]
TableGroupBy = Annotated[
    Duplicates | Annotated[str, AfterValidator(check_group_column)],
    Expected(f"one of auto, exact, none, the name of a column, {_PATTERN_TEXT}"),
]
PAIR = Field(min_length=2, max_length=2), AfterValidator(check_ascending)


class Group(BaseModel):
    """A group of settings, which does not change. A key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    _order: tuple[str, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_given(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Keep the order of the keys, and whole numbers where pydantic makes them floats: results follow from both."""
        group = handler(values)
        if isinstance(values, Mapping):
            group._order = tuple(values)
            for name, value in values.items():
                if isinstance(value, (int, list)) and group.__dict__.get(name) == value:
                    group.__dict__[name] = value
        return group

    def replace(self, **changes: Any) -> Self:
        """Return the group with other values, which are not checked."""
        return self.model_copy(update=changes)

    def given(self) -> dict[str, Any]:
        """Return the values that were given, by key in their order; those of groups are groups."""
        names = self.model_fields_set | (self.model_extra or {}).keys()
        return {name: getattr(self, name) for name in dict.fromkeys((*self._order, *sorted(names))) if name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return what was given as plain Python: a checkpoint with it loads without running code."""
        return {name: _plain(value) for name, value in self.given().items()}


class DeviceChoice(Group):
    """Where a program computes; null: as the run did, or what suits the machine."""

    accelerator: Device | None
    precision: Precision | None


class Target(Group):
    """A group that names what it calls (`_target_`); its other keys are the arguments, see `check_targets`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, defer_build=True)

    def build(self, **arguments: Any) -> Any:
        """Call what `_target_` names with the other keys and `arguments`, which count more.

        What these keys name is called first. With `_partial_`, return a function that takes the missing arguments.
        """
        from hydra.utils import instantiate  # half a second, which a prediction does not need

        return instantiate(self.to_dict(), **arguments, _convert_="all")


class Parts(Group):
    """A group of parts by name, each of which names what it calls. There may be others than those that are declared."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, defer_build=True)

    def parts(self) -> dict[str, Target]:
        """Return the parts that were given, by name."""
        given = {name: value for name, value in self.given().items() if value is not None}
        return {
            name: value if isinstance(value, Target) else Target.model_validate(value) for name, value in given.items()
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Group):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
