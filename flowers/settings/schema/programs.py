"""The settings of the other programs; `flowers.settings.programs` is the table of all programs."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from flowers.settings.registry import find_parts
from flowers.settings.schema.training import ClassFolders, Columns, Data, LabelColumns, Model, Readable
from flowers.settings.schema.values import (
    AtLeastOne,
    Count,
    DeviceChoice,
    Engine,
    Expected,
    FilePath,
    Fraction,
    Group,
    ImageSide,
    Layout,
    Megapixels,
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

    run: FilePath | None
    tta: TestTimeAugmentation | None
    split: Literal["train", "val", "test"]
    root: FilePath | None
    photos: FilePath | None
    columns: LabelColumns
    corrections: FilePath | None
    on_corrupt: OnCorrupt | None
    layout: Layout | None
    merge_similar_names: bool | None
    max_megapixels: Megapixels | None
    engine: Engine | None
    output: FilePath | None
    report: FilePath | None
    reject: Fraction | None
    strangers: FilePath | None


class AuditSettings(DeviceChoice):
    """flowers.audit."""

    photos: FilePath | None
    columns: LabelColumns
    run: FilePath | None
    model: Model
    corrections: FilePath | None
    on_corrupt: OnCorrupt | None
    layout: Layout | None
    merge_similar_names: bool | None
    max_megapixels: Megapixels | None
    image_size: ImageSide
    folds: Annotated[int, Field(ge=2)]
    seed: Seed
    neighbors: AtLeastOne
    max_photos: AtLeastOne
    cache_gb: NotNegative
    output: FilePath


class CompareSettings(Group):
    """flowers.compare."""

    runs: Annotated[list[FilePath], Expected("at least two runs, runs='[A,B]'")]
    multirun: FilePath | None
    split: Literal["val", "test"]
    corrections: FilePath | None
    max_listed: Count
    output: FilePath | None


class PredictSettings(DeviceChoice):
    """flowers.predict."""

    run: FilePath | None
    max_megapixels: Megapixels | None
    tta: TestTimeAugmentation | None
    photos: FilePath | list[FilePath]
    root: FilePath | None
    confidence: Probability | None
    reject: Fraction | None
    output: FilePath | None
    engine: Engine | None
    num_workers: Count | None


class ExplainSettings(DeviceChoice):
    """flowers.explain."""

    run: FilePath
    photos: FilePath | list[FilePath]
    label: Text | None
    output: FilePath


class ExportSettings(Group):
    """flowers.export."""

    run: FilePath | None
    tta: TestTimeAugmentation | None
    output: FilePath
    photos: FilePath | None
    on_corrupt: OnCorrupt | None
    reject: Fraction | None
    formats: Annotated[
        list[Format],
        Field(min_length=1),
        Expected(lambda: f"a list of {', '.join(_formats()[:-1])} and {_formats()[-1]}"),
    ]
    web_runtime: FilePath | None
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

    run: FilePath | None
    confidence: Probability | None
    reject: Fraction | None
    host: Text
    port: Annotated[int, Field(ge=0, le=65535)]
    token: Annotated[Text, Expected("a text; a number in quotes, token=\"'123'\", or $FLOWERS_APP_TOKEN")] | None
    allowed_hosts: list[Text]
    proxy: bool
    max_megapixels: Megapixels
    max_request_mb: Positive
    max_files: AtLeastOne
    max_in_flight: AtLeastOne
    request_seconds: Positive


class Search(Group):
    """sweep."""

    trials: AtLeastOne
    folder: FilePath
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
    folder: FilePath
    keep_checkpoints: bool


class SoupSettings(DeviceChoice):
    """flowers.soup."""

    runs: Annotated[list[FilePath], Expected("at least two runs, runs='[A,B]'")]
    multirun: FilePath | None
    root: FilePath | None
    output: FilePath


class PackedFolder(ClassFolders, Readable):
    """pack.data."""

    columns: Columns


class PackSettings(Group):
    """flowers.pack."""

    photos: FilePath
    output: FilePath
    shard_mb: Positive
    workers: AtLeastOne | None
    data: PackedFolder


class ProbeSettings(DeviceChoice):
    """flowers.probe."""

    data: Data
    models: Annotated[
        list[Text], Field(min_length=1), Expected("a list of architectures, models='[resnet18,A:WEIGHTS]'")
    ]
    folds: Annotated[int, Field(ge=2)]
    seed: Seed
    cache_gb: NotNegative
    output: FilePath | None


class LearningCurveSettings(DeviceChoice):
    """flowers.learning_curve."""

    data: Data
    model: Model
    run: FilePath | None
    root: FilePath | None
    stage: Literal["head", "finetune"]
    fractions: Annotated[
        list[Share],
        Field(min_length=3),
        Expected("at least three numbers above 0 and at most 1"),
    ]
    seeds: Annotated[list[Seed], Field(min_length=2), Expected("at least two seeds")]
    seed: Seed
    cache_gb: NotNegative
    output: FilePath | None


class SuggestSettings(DeviceChoice):
    """flowers.suggest."""

    run: FilePath | None
    pool: FilePath | None
    root: FilePath | None
    max_megapixels: Megapixels | None
    count: AtLeastOne
    labels: FilePath | None
    method: Literal["margin_kmeans", "margin", "badge", "random"]
    seed: Seed
    output: FilePath | None
