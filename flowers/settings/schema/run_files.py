"""What the files of a run folder, and what is made from one, may hold. They may come from strangers: they are data.

Nothing in them is imported, called, resolved or fetched. `validation.check_file` puts what is wrong into one line.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, ConfigDict, Field

from flowers.settings.schema.values import (
    PAIR,
    AtLeastOne,
    BitDepth,
    Count,
    Expected,
    Group,
    ImageSide,
    Interpolation,
    NotNegative,
    Positive,
    Probability,
    Seed,
    TestTimeAugmentation,
)

MAX_CLASSES = 32_768  # ImageNet-21k has 21,841
_MAX_NAME = 255  # of a class: the name of a folder
CLASSES_TEXT = (
    f"at least one and at most {MAX_CLASSES:,} names of classes, all different, each of 1 to {_MAX_NAME} characters"
)
_MAX_TEXT = 2**16
_MAX_NUMBER = 2**16  # of an option of a network, such as its width
_MAX_ITEMS = 64

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def is_plain_name(value: object) -> TypeGuard[str]:
    """Return whether a value may go into requests and paths as it is: it leaves no folder, and ends no quotation."""
    return isinstance(value, str) and _PLAIN_NAME.fullmatch(value) is not None


def _check(is_right: bool, value: Any) -> Any:
    if not is_right:
        raise ValueError
    return value


def _is_text(value: object, longest: int = _MAX_TEXT) -> bool:
    return isinstance(value, str) and len(value) <= longest


def are_classes(values: Sequence[Any]) -> bool:
    """Return whether all values are names of classes: different texts that are not empty, of bounded length."""
    is_bounded = 1 <= len(values) <= MAX_CLASSES
    return is_bounded and all(name and _is_text(name, _MAX_NAME) for name in values) and len({*values}) == len(values)


def _is_option(value: object, depth: int = 2) -> bool:
    """Return whether a value is plain: a number, a short text, true, false, null, or a list of these or of lists."""
    if isinstance(value, (list, tuple)):
        return depth > 0 and len(value) <= _MAX_ITEMS and all(_is_option(each, depth - 1) for each in value)
    if isinstance(value, (int, float)):
        return -_MAX_NUMBER <= value <= _MAX_NUMBER
    return value is None or _is_text(value, _MAX_NAME)


def _is_split_digest(value: object) -> bool:
    """Return whether a value is a digest, or those of split and weights, as earlier versions wrote them."""
    return _is_text(value) or (isinstance(value, dict) and _is_text(value.get("split")))


def are_options(values: Mapping[Any, Any]) -> bool:
    """Return whether all options of a network are plain values within bounds."""
    return len(values) <= _MAX_ITEMS and all(is_plain_name(key) and _is_option(each) for key, each in values.items())


# Not `str`: pydantic takes no text with bytes that are not UTF-8, which names of files may have.
AnyText = Annotated[Any, AfterValidator(lambda value: _check(_is_text(value), value)), Expected("a text")]
Lines = Annotated[
    list[Any],
    Field(max_length=10_000),
    AfterValidator(lambda values: _check(all(map(_is_text, values)), values)),
    Expected("a list of texts"),
]
ClassNames = Annotated[
    list[Any],
    AfterValidator(lambda values: _check(are_classes(values), values)),
    Expected(CLASSES_TEXT),
]
PlainName = Annotated[
    str,
    AfterValidator(lambda value: _check(is_plain_name(value), value)),
    Expected("a name of at most 128 letters, digits, points, dashes and underscores"),
]
Architecture = Annotated[
    str,
    Field(pattern=r"^(timm/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"),
    Expected("the name of an architecture"),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Expected("a SHA-256 of 64 hexadecimal digits")]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$"), Expected("a SHA-256 of 64 hexadecimal digits, or empty")]
Options = Annotated[
    dict[Any, Any],
    AfterValidator(lambda values: _check(are_options(values), values)),
    Expected(f"plain values of at most {_MAX_NUMBER:,}"),
]
Triple = Annotated[list[float], Field(min_length=3, max_length=3), Expected("three finite numbers")]
PositiveTriple = Annotated[list[Positive], Field(min_length=3, max_length=3), Expected("three finite numbers above 0")]
Interval = Annotated[list[Probability], *PAIR, Expected("[low, high], each from 0 to 1")]


class RunFile(Group):
    """Content of a file that this project writes. A key that is not declared is an error, and so is NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TrackerIds(RunFile):
    """trackers.json, as `ids`: the id of a run by the name of the tracker."""

    ids: Annotated[
        dict[PlainName, PlainName | None],
        Field(max_length=16),
        Expected("names of trackers and their ids, of at most 128 letters, digits, points, dashes and underscores"),
    ]


class Start(RunFile):
    """started.yaml; `overrides` is null for a run that was started from Python."""

    cwd: AnyText
    overrides: Lines | None


class Resume(RunFile):
    """An entry of resumed.yaml."""

    cwd: AnyText
    overrides: Lines
    checkpoint: Count = 0


class SearchStart(RunFile):
    """search.yaml. A search of an earlier version saved no options."""

    owner: AnyText
    cwd: AnyText
    settings: Lines
    shared: bool
    options: Lines | None = None


class Score(RunFile):
    """The score of a split in result.json."""

    accuracy: Probability
    loss: NotNegative
    n: AtLeastOne
    interval: Interval


class Digests(RunFile):
    """digest."""

    split: Digest
    weights: Sha256


class Cost(RunFile):
    """cost."""

    seconds: dict[Any, NotNegative]
    peak_memory_bytes: Count | None = None
    photos_per_second: dict[Any, NotNegative] | None = None


class SoupMembers(RunFile):
    """soup."""

    members: Lines
    tried: AtLeastOne


class Result(RunFile):
    """result.json."""

    format_version: Annotated[int, Field(ge=1, le=3)] = 1
    train: Score | None = None
    val: Score
    test: Score | None = None
    temperature: Positive = 1.0
    best_epoch: AtLeastOne | None = None
    classes: ClassNames | None = None
    seed: Seed | None = None
    digest: Digests | None = None
    device: AnyText = ""
    precision: AnyText = ""
    engine: Literal["pytorch", "int8"] = "pytorch"
    versions: dict[Any, AnyText] | None = None
    git: AnyText | None = None
    cost: Cost
    soup: SoupMembers | None = None


class StoredPixels(RunFile):
    """How images are prepared."""

    image_size: ImageSide
    resize: Annotated[int, Field(ge=1, le=8192)]
    interpolation: Interpolation
    mean: Triple
    std: PositiveTriple
    bit_depth: BitDepth | None = None


class Hyperparameters(StoredPixels):
    """What a checkpoint says of its network. `config` is checked by `check_stored_config`.

    `package` is what registers the architecture, if neither torchvision nor timm has it. It is shown, not imported.
    """

    architecture: Architecture
    package: PlainName | None = None
    classes: ClassNames
    options: Options | None = None
    interpolation: Interpolation = "bilinear"
    split_digest: Digest = ""
    weights_digest: Sha256 | None = None
    config: dict[Any, Any] | None = None
    seed: Seed = 0


class Hub(RunFile):
    """config.json of a folder for a hub. `pretrained_cfg` is for timm; it and the last three are not read."""

    format_version: Literal[1]
    architecture: Architecture
    num_classes: AtLeastOne
    num_features: AtLeastOne
    label_names: ClassNames
    model_args: Options
    pretrained_cfg: dict[Any, Any] | None = None
    library: Literal["torchvision", "timm"]
    classifier: Annotated[list[PlainName], Field(min_length=1, max_length=4), Expected("the names of the last layers")]
    pixels: StoredPixels
    temperature: Positive
    tta: TestTimeAugmentation
    split_digest: Annotated[
        Any, AfterValidator(lambda value: _check(_is_split_digest(value), value)), Expected("the digest of a split")
    ]
    photos: dict[Any, Any] | None = None
    trained: dict[Any, Any] | None = None
    metrics: dict[Any, Any] | None = None


class CurvePoint(RunFile):
    """points."""

    photos: AtLeastOne
    accuracy: Probability
    accuracies: Annotated[list[Probability], Field(min_length=1)]


class CurveLaw(RunFile):
    """law."""

    floor: float
    scale: float
    exponent: float


class CurveSamples(RunFile):
    """curve."""

    photos: Annotated[list[AtLeastOne], Field(min_length=1, max_length=10_000)]
    accuracy: Annotated[list[float], Field(min_length=1, max_length=10_000)]
    low: Annotated[list[float], Field(min_length=1, max_length=10_000)]
    high: Annotated[list[float], Field(min_length=1, max_length=10_000)]


class CurvePrediction(RunFile):
    """twice and check."""

    photos: AtLeastOne
    accuracy: float
    interval: Annotated[list[float], Field(min_length=2, max_length=2), Expected("[low, high]")]


class LearningCurve(RunFile):
    """learning_curve.json."""

    stage: Literal["head", "finetune"] = "head"
    seeds: list[Seed] | None = None
    validation_photos: AtLeastOne
    points: Annotated[list[CurvePoint], Field(min_length=1, max_length=10_000)]
    law: CurveLaw
    curve: CurveSamples
    twice: CurvePrediction
    check: CurvePrediction | None = None
