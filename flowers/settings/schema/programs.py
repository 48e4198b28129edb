"""The settings of the other programs; `flowers.settings.programs` is the table of all programs."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from flowers.settings.registry import find_parts
from flowers.settings.schema.training import Folder, Model, Shards, Split
from flowers.settings.schema.values import (
    AtLeastOne,
    Count,
    DeviceChoice,
    Engine,
    Expected,
    Fraction,
    Group,
    ImageSide,
    NotNegative,
    OnCorrupt,
    Positive,
    Probability,
    Seed,
    Share,
    Target,
    TestTimeAugmentation,
    Text,
)


def _formats() -> list[str]:
    """Return the names of the formats of `flowers.deploy.export.formats`, and of those that packages register."""
    return ["torch_export", "onnx", "int8", "hub", "web", *find_parts("exporters")]


def _check_format(name: str) -> str:
    if name not in _formats():
        raise ValueError
    return name


Format = Annotated[
    str, AfterValidator(_check_format), Field(json_schema_extra=lambda schema: schema.update(enum=[*_formats()]))
]


class EvaluateSettings(DeviceChoice):
    """flowers.evaluate."""

    run: Text | None
    tta: TestTimeAugmentation | None
    split: Literal["train", "val", "test"]
    root: Text | None
    photos: Text | None
    corrections: Text | None
    on_corrupt: OnCorrupt | None
    engine: Engine | None
    output: Text | None
    report: Text | None
    reject: Fraction | None
    strangers: Text | None


class AuditSettings(DeviceChoice):
    """flowers.audit."""

    photos: Text | None
    run: Text | None
    model: Model
    corrections: Text | None
    on_corrupt: OnCorrupt | None
    image_size: ImageSide
    folds: Annotated[int, Field(ge=2)]
    seed: Seed
    neighbors: AtLeastOne
    max_photos: AtLeastOne
    cache_gb: NotNegative
    output: Text


class CompareSettings(Group):
    """flowers.compare."""

    runs: Annotated[list[Text], Expected("at least two runs, runs='[A,B]'")]
    multirun: Text | None
    split: Literal["val", "test"]
    corrections: Text | None
    max_listed: Count
    output: Text | None


class PredictSettings(DeviceChoice):
    """flowers.predict."""

    run: Text | None
    tta: TestTimeAugmentation | None
    photos: Text | list[Text]
    root: Text | None
    confidence: Probability | None
    reject: Fraction | None
    output: Text | None
    engine: Engine | None
    num_workers: Count | None


class ExplainSettings(DeviceChoice):
    """flowers.explain."""

    run: Text
    photos: Text | list[Text]
    label: str | int | float | bool | None
    output: Text


class ExportSettings(Group):
    """flowers.export."""

    run: Text | None
    tta: TestTimeAugmentation | None
    output: Text
    photos: Text | None
    on_corrupt: OnCorrupt | None
    reject: Fraction | None
    formats: Annotated[
        list[Format],
        Field(min_length=1),
        Expected(lambda: f"a list of {', '.join(_formats()[:-1])} and {_formats()[-1]}"),
    ]
    web_runtime: Text | None
    int8: bool
    calibration_images: AtLeastOne
    reduce_range: bool
    min_agreement: Probability
    int8_min_agreement: Probability
    min_rejection_agreement: Probability
    batch: AtLeastOne
    rounds: AtLeastOne
    seconds: NotNegative


class AppSettings(DeviceChoice):
    """flowers.app."""

    run: Text | None
    confidence: Probability | None
    reject: Fraction | None
    host: Text
    port: Annotated[int, Field(ge=0, le=65535)]
    token: Annotated[Text, Expected("a text; a number in quotes, token=\"'123'\", or $FLOWERS_APP_TOKEN")] | None
    allowed_hosts: list[Text]
    proxy: bool
    max_megapixels: Positive
    max_request_mb: Positive
    max_files: AtLeastOne
    max_in_flight: AtLeastOne
    request_seconds: Positive


class Search(Group):
    """sweep."""

    trials: AtLeastOne
    folder: Text
    storage: Text | None
    study: Text
    seed: Seed
    keep: Count | None
    settings: list[str]
    options: list[str]
    sampler: Target
    pruner: Target


class SweepSettings(Group):
    """flowers.sweep."""

    sweep: Search


class Recipe(Group):
    """recipe."""

    base: list[str]
    parts: dict[str, list[str]]
    best: list[str]


class AblationSettings(Group):
    """flowers.ablation."""

    recipe: Recipe
    settings: list[str]
    folds: Annotated[int, Field(ge=2)]
    seeds: Annotated[list[Seed], Field(min_length=1), Expected("at least one seed")]
    folder: Text
    keep_checkpoints: bool


class SoupSettings(DeviceChoice):
    """flowers.soup."""

    runs: Annotated[list[Text], Expected("at least two runs, runs='[A,B]'")]
    multirun: Text | None
    root: Text | None
    output: Text


class PackSettings(Group):
    """flowers.pack."""

    photos: Text
    output: Text
    shard_mb: Positive
    workers: AtLeastOne | None
    data: Split


class ProbeSettings(DeviceChoice):
    """flowers.probe."""

    data: Folder | Shards
    models: Annotated[
        list[Text], Field(min_length=1), Expected("a list of architectures, models='[resnet18,A:WEIGHTS]'")
    ]
    folds: Annotated[int, Field(ge=2)]
    seed: Seed
    cache_gb: NotNegative
    output: Text | None


class LearningCurveSettings(DeviceChoice):
    """flowers.learning_curve."""

    data: Folder | Shards
    model: Model
    run: Text | None
    root: Text | None
    stage: Literal["head", "finetune"]
    fractions: Annotated[
        list[Share],
        Field(min_length=3),
        Expected("at least three numbers above 0 and at most 1"),
    ]
    seeds: Annotated[list[Seed], Field(min_length=2), Expected("at least two seeds")]
    seed: Seed
    cache_gb: NotNegative
    output: Text | None


class SuggestSettings(DeviceChoice):
    """flowers.suggest."""

    run: Text | None
    pool: Text | None
    root: Text | None
    count: AtLeastOne
    labels: Text | None
    method: Literal["margin_kmeans", "margin", "badge", "random"]
    seed: Seed
    output: Text | None
