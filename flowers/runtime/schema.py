"""The keys, types and ranges of every setting, declared once: what a program refuses before it does anything.

The defaults and the texts of the keys are in conf/. To add a key, add it there and here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from flowers.runtime.suggestions import did_you_mean, suggest_key

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
# Whole numbers count batches, fractions are shares of an epoch.
Batches = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Device = Literal["cpu", "gpu", "cuda", "mps"]
# Others of Lightning are left out: with bf16-true and 16-true the weights are too coarse for small learning rates.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
OnCorrupt = Literal["error", "skip"]


class Expected(NamedTuple):
    """What a setting with a validator of its own must be, for the message."""

    text: str


def _is_range(maximum: float) -> Any:
    def check(values: list[float]) -> list[float]:
        if len(values) != 2 or not 0 < values[0] <= values[1] <= maximum:
            raise ValueError
        return values

    return AfterValidator(check)


class Group(BaseModel):
    """A group of settings. A key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Target(Group):
    """A group that names what it calls (`_target_`); its other keys are the arguments, see `check_targets`."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)


class Split(Group):
    """How a folder of images is split."""

    val_fraction: Fraction
    test_fraction: Fraction
    folds: Literal[0] | Annotated[int, Field(ge=2)]
    fold: Count
    split_seed: Count
    split_file: Text | None
    on_corrupt: OnCorrupt


class Pixels(Group):
    """How images become batches, from a folder or from shards."""

    image_size: Annotated[int, Field(ge=1, le=4096)]
    resize: Annotated[int, Field(ge=1, le=8192)]
    crop_scale: Annotated[list[float], _is_range(1.0), Expected("[smallest, largest], above 0 and at most 1")]
    crop_ratio: Annotated[list[float], _is_range(float("inf")), Expected("[smallest, largest], above 0")]
    hflip_prob: Probability
    brightness: NotNegative
    contrast: NotNegative
    saturation: NotNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    batch_size: AtLeastOne
    num_workers: Count | None
    decoded_cache_fraction: Fraction


class Remote(Group):
    """How shards are read from an address."""

    retry_timeout: NotNegative
    cache_gb: Positive
    shuffle_shards: AtLeastOne


class Augmentation(Target):
    """data.augmentation."""

    erasing: Probability = 0.0


class Source(Group):
    """Where images come from."""

    root: Text
    source: dict[str, Any] | None
    augmentation: Augmentation | None = None


class Folder(Split, Pixels, Source):
    """data=folder."""


class Shards(Remote, Pixels, Source):
    """data=shards."""

    packed: bool
    s3_endpoint: Text | None


class Model(Group):
    """model."""

    architecture: Text
    weights: Text | None
    options: dict[str, Any]
    mean: Annotated[list[float], Field(min_length=3, max_length=3), Expected("three numbers")] = [0.485, 0.456, 0.406]
    std: Annotated[list[Positive], Field(min_length=3, max_length=3), Expected("three numbers above 0")] = [1.0] * 3


class Optimizer(Target):
    """optimizer."""

    lr: Positive
    weight_decay: NotNegative = 0.0
    momentum: Fraction = 0.0


class Scheduler(Target):
    """scheduler."""

    warmup: Fraction = 0.0
    drops: Count = 0
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0


class Loss(Target):
    """loss."""

    label_smoothing: Fraction = 0.0
    class_weights: list[NotNegative] | None = None
    gamma: NotNegative = 0.0


class Trainer(Target):
    """trainer: what conf/trainer lists, and arguments of Lightning's Trainer."""

    accelerator: Accelerator
    devices: Annotated[
        AtLeastOne | Literal[-1, "auto"] | list[Count] | Annotated[str, Field(pattern=r"^\d+(,\d+)*$")],
        Expected("a number of devices, at least 1, a list of device numbers, or auto"),
    ]
    strategy: Text
    precision: Precision | Literal["auto"]
    deterministic: bool | Literal["warn", "auto"]
    log_every_n_steps: Count
    gradient_clip_val: NotNegative | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    accumulate_grad_batches: AtLeastOne = 1
    limit_train_batches: Batches | None = None
    limit_val_batches: Batches | None = None
    overfit_batches: Count | Fraction = 0
    max_steps: AtLeastOne | Literal[-1] = -1
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    num_nodes: AtLeastOne = 1


class Head(Group):
    """head."""

    epochs: Count
    cached_views: Count


class Finetune(Group):
    """finetune."""

    epochs: Count
    backbone_lr: Positive
    compile: bool


class Features(Group):
    """features."""

    cache: bool
    cache_gb: NotNegative


class MidEpoch(Target):
    """callbacks.mid_epoch."""

    minutes: Positive


class ImageLogging(Target):
    """callbacks.image_logger."""

    every_seconds: NotNegative = 0.0


class FiniteLoss(Target):
    """callbacks.finite_loss."""

    every: AtLeastOne = 1


class Callbacks(Target):
    """callbacks: those of conf/callbacks/default.yaml, any of which may be left out, and others."""

    best: Target | None = None
    last: Target | None = None
    mid_epoch: MidEpoch | None = None
    learning_rate: Target | None = None
    image_logger: ImageLogging | None = None
    finite_loss: FiniteLoss | None = None
    progress: Target | None = None


class Train(Group):
    """flowers.train."""

    data: Folder | Shards
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    loss: Loss
    trainer: Trainer
    callbacks: Callbacks | None
    logger: dict[str, Any] | bool | None
    head: Head
    finetune: Finetune
    features: Features
    seed: Seed
    resume: Text | None
    run_dir: Text


class Evaluate(Group):
    """flowers.evaluate."""

    run: Text | None
    split: Literal["train", "val", "test"]
    photos: Text | None
    on_corrupt: OnCorrupt | None
    accelerator: Device | None
    precision: Precision | None
    output: Text | None
    report: Text | None


class Compare(Group):
    """flowers.compare."""

    runs: Annotated[list[Text], Expected("at least two runs, runs='[A,B]'")]
    multirun: Text | None
    split: Literal["val", "test"]
    max_listed: Count
    output: Text | None


class Predict(Group):
    """flowers.predict."""

    run: Text | None
    photos: Text | list[Text]
    confidence: Probability | None
    output: Text | None
    accelerator: Device | None
    precision: Precision | None
    num_workers: Count | None


class Explain(Group):
    """flowers.explain."""

    run: Text
    photos: Text | list[Text]
    label: str | int | float | bool | None
    output: Text
    accelerator: Device | None
    precision: Precision | None


class Export(Group):
    """flowers.export."""

    run: Text | None
    output: Text
    photos: Text | None
    on_corrupt: OnCorrupt | None
    int8: bool
    calibration_images: AtLeastOne
    reduce_range: bool
    min_agreement: Probability
    int8_min_agreement: Probability
    batch: AtLeastOne
    rounds: AtLeastOne
    seconds: NotNegative


class App(Group):
    """flowers.app."""

    run: Text | None
    confidence: Probability | None
    port: Annotated[int, Field(ge=0, le=65535)]
    max_megapixels: Positive
    max_upload_mb: Positive
    allowed_hosts: list[Text]
    accelerator: Device | None
    precision: Precision | None


class SweepSettings(Group):
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


class Sweep(Group):
    """flowers.sweep."""

    sweep: SweepSettings


class Pack(Group):
    """flowers.pack."""

    photos: Text
    output: Text
    shard_mb: Positive
    workers: AtLeastOne | None
    data: Split


class PredictedRuns(Group):
    """predicted_runs."""

    report: Annotated[list[Count], Field(min_length=2, max_length=2), Expected("the epochs of both stages, [5, 45]")]
    head_only: Annotated[list[Count], Field(min_length=2, max_length=2), Expected("the epochs of both stages, [50, 0]")]


class BenchmarkHead(Group):
    """head."""

    epochs: AtLeastOne


class Benchmark(Group):
    """flowers.benchmark."""

    data: Folder | Shards
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    trainer: Trainer
    rounds: AtLeastOne
    seconds: Positive
    step_batch: Annotated[int, Field(ge=2)] | None
    head: BenchmarkHead
    predicted_runs: PredictedRuns
    seed: Seed
    output: Text | None


PROGRAM_SCHEMAS: dict[str, type[Group]] = {
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "predict": Predict,
    "explain": Explain,
    "export": Export,
    "app": App,
    "sweep": Sweep,
    "pack": Pack,
    "benchmark": Benchmark,
}


def check_values(values: Mapping[str, Any], schema: type[Group], prefix: str = "") -> None:
    """Check settings against a schema, and the rules that join two of them.

    Args:
        values: Plain Python, nested as in the configuration.
        schema: Such as `PROGRAM_SCHEMAS["train"]`.
        prefix: What stands before the keys in messages, such as "data.".

    Raises:
        ValueError: A key is unknown or missing, or a value is not valid. The message names the key, the value, and what
            was expected.
    """
    model = _narrow(schema, values)
    try:
        model.model_validate(values)
    except ValidationError as error:
        raise ValueError(_first_problem(error, model, values, prefix)) from None
    for message in _joint_problems(values, prefix):
        raise ValueError(message)


def _narrow(schema: type[Group], values: Mapping[str, Any]) -> type[Group]:
    """Return the schema with the kind of data that the values have, so that messages are about that kind only."""
    data = schema.model_fields.get("data")
    if data is None or data.annotation != Folder | Shards:
        return schema
    kind = Shards if isinstance(values.get("data"), Mapping) and "packed" in values["data"] else Folder
    return type(schema.__name__, (schema,), {"__annotations__": {"data": kind}, "__module__": __name__})


def _joint_problems(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    groups = {prefix: values, f"{prefix}data.": values.get("data")}
    for group, settings in groups.items():
        if not isinstance(settings, Mapping):
            continue
        if "resize" in settings and settings["resize"] < settings["image_size"]:
            yield f"{group}resize={settings['resize']}: expected at least {group}image_size={settings['image_size']}"
        if settings.get("val_fraction", 0) + settings.get("test_fraction", 0) >= 1:
            yield (
                f"{group}val_fraction={settings['val_fraction']} {group}test_fraction={settings['test_fraction']}: "
                "expected a sum below 1, to leave images for training"
            )
        if settings.get("folds") and settings["fold"] >= settings["folds"]:
            yield (
                f"{group}fold={settings['fold']}: expected a number from 0 to {settings['folds'] - 1} "
                f"({group}folds={settings['folds']})"
            )
    head, finetune = values.get("head"), values.get("finetune")
    if isinstance(head, Mapping) and isinstance(finetune, Mapping) and not head["epochs"] + finetune["epochs"]:
        yield "head.epochs=0 finetune.epochs=0: expected at least 1 epoch in one of them"


def _first_problem(error: ValidationError, schema: type[Group], values: Mapping[str, Any], prefix: str) -> str:
    """Put the first error into words: an unknown key before a wrong value, which may follow from it."""
    errors = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    keys, field = _locate(schema, errors[0]["loc"])
    key = prefix + ".".join(keys)
    if errors[0]["type"] == "extra_forbidden":
        return f"{key}: no such key{suggest_key(key, [prefix + name for name in key_names(schema)])}"
    if errors[0]["type"] == "missing":
        return f"{key} is missing: expected {field_text(field)}"
    value: Any = values
    for name in keys:
        value = value[name]
    hint = did_you_mean(str(value), _choices(field)) if field else ""
    if keys[-1] == "image_size" and isinstance(value, int) and value > 0:
        batch_size = values.get("data", values)["batch_size"]
        hint = f" (a batch of {batch_size} such images takes {12 * value**2 * batch_size / 1e9:,.1f} GB)"
    return f"{key}={format_setting(value)}: expected {field_text(field)}{hint}"


def _locate(schema: type[Group], location: tuple[int | str, ...]) -> tuple[list[str], FieldInfo | None]:
    """Return the keys and the field of an error; what follows in its location is inside of the value."""
    keys: list[str] = []
    field: FieldInfo | None = None
    model: Any = schema
    for part in location:
        if not (isinstance(model, type) and issubclass(model, Group)):
            break
        keys.append(str(part))
        field = model.model_fields.get(str(part))
        model = _group_of(field)
    return keys, field


def _group_of(field: FieldInfo | None) -> Any:
    """Return the group that a field holds, also one that may be null; None for a value."""
    kinds = [field.annotation, *get_args(field.annotation)] if field else []
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Group)), None)


def key_names(schema: type[Group], prefix: str = "") -> list[str]:
    """Return all keys of a schema, such as "data.root"."""
    names = []
    for name, field in schema.model_fields.items():
        names.append(prefix + name)
        if group := _group_of(field):
            names += key_names(group, f"{prefix}{name}.")
    return names


def format_setting(value: Any) -> str:
    """Return a value as one writes it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(format_setting, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{format_setting(each)}" for name, each in value.items()) + "}"
    return "null" if value is None else str(value)


def field_text(field: FieldInfo | None) -> str:
    """Return what a field accepts, in words: "a whole number, at least 1, or null"."""
    if field is None:
        return "another value"
    return _kind_text(field.annotation, field.metadata)


def _kind_text(kind: Any, metadata: list[Any]) -> str:
    for each in metadata:
        if isinstance(each, Expected):
            return each.text
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        return _kind_text(kind, [*_unpack(inner), *metadata])
    if get_origin(kind) is Literal:
        choices = list(map(format_setting, get_args(kind)))
        return "one of " + ", ".join(choices) if len(choices) > 1 else choices[0]
    if get_args(kind) and get_origin(kind) not in (list, dict):  # a union
        kinds = [each for each in get_args(kind) if each is not type(None)]
        choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
        parts = [_kind_text(each, metadata) for each in kinds if get_origin(each) is not Literal]
        parts += [_kind_text(Literal[tuple(choices)], [])] if choices else []
        return ", or ".join(parts + (["null"] if type(None) in get_args(kind) else []))
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    name = names.get(kind) or ("a list" if get_origin(kind) is list else "a group of settings (key.name=value)")
    return name + _bounds_text(_unpack(metadata))


def _unpack(metadata: list[Any]) -> list[Any]:
    """Return bounds and markers: a `Field(ge=…)` inside of a union still holds its bounds."""
    return [part for each in metadata for part in (each.metadata if isinstance(each, FieldInfo) else [each])]


def _bounds_text(metadata: list[Any]) -> str:
    low = next((f"at least {each.ge:.12g}" for each in metadata if isinstance(each, Ge)), "")
    low = low or next((f"above {each.gt:.12g}" for each in metadata if isinstance(each, Gt)), "")
    high = next((f"at most {each.le:.12g}" for each in metadata if isinstance(each, Le)), "")
    high = high or next((f"below {each.lt:.12g}" for each in metadata if isinstance(each, Lt)), "")
    if any(isinstance(each, MinLen) for each in metadata):
        return " that is not empty"
    if low.startswith("at least") and high.startswith("at most"):
        return f" from {low.removeprefix('at least ')} to {high.removeprefix('at most ')}"
    bounds = " and ".join(part for part in (low, high) if part)
    return f", {bounds}" if bounds else ""


def _choices(field: FieldInfo) -> list[str]:
    kinds = [field.annotation, *get_args(field.annotation)]
    return [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]


def unset_variable(error: Exception) -> str | None:
    """Return the name of the environment variable that OmegaConf did not find, if the error says so."""
    match = re.search("Environment variable '(.*)' not found", str(error))
    return match[1] if match else None
