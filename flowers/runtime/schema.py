"""The keys, types and ranges of every setting, declared once. `validation` checks them before a program does anything.

The defaults and the texts of the keys are in conf/. To add a key, add it there and here.
"""

import re
from typing import Annotated, Any, Literal, NamedTuple

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


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


class Expected(NamedTuple):
    """What a setting with a validator of its own must be, for the message."""

    text: str


def _check_ascending(values: list[float]) -> list[float]:
    if values != sorted(values):
        raise ValueError
    return values


_PAIR = Field(min_length=2, max_length=2), AfterValidator(_check_ascending)


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
    corrections: Text | None
    on_corrupt: OnCorrupt


class Pixels(Group):
    """How images become batches, from a folder or from shards."""

    image_size: ImageSide
    resize: Annotated[int, Field(ge=1, le=8192)]
    interpolation: Interpolation
    crop_scale: Annotated[list[Share], *_PAIR, Expected("[smallest, largest], above 0 and at most 1")]
    crop_ratio: Annotated[list[Positive], *_PAIR, Expected("[smallest, largest], above 0")]
    hflip_prob: Probability
    brightness: NotNegative
    contrast: NotNegative
    saturation: NotNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    balance: Balance
    batch_size: AtLeastOne
    num_workers: Count | None
    decoded_cache_fraction: Fraction


class ModelPixels(Pixels):
    """How a configuration sets them: null takes the value that suits the weights of the model."""

    resize: Annotated[int, Field(ge=1, le=8192)] | None  # type: ignore[assignment]
    interpolation: Interpolation | None  # type: ignore[assignment]


class Remote(Group):
    """How shards are read from an address."""

    retry_timeout: NotNegative
    cache_gb: Positive
    shuffle_shards: AtLeastOne


class Augmentation(Target):
    """data.augmentation."""

    policy: Literal["trivial", "rand"] | None = None
    erasing: Probability = 0.0


class Source(Group):
    """Where images come from."""

    root: Text
    source: dict[str, Any] | None
    augmentation: Augmentation | None = None


class Folder(Split, ModelPixels, Source):
    """data=folder."""


class Shards(Remote, ModelPixels, Source):
    """data=shards."""

    balance: Literal["none", "weights"]
    packed: bool
    corrections: Text | None
    s3_endpoint: Text | None


class Model(Group):
    """model."""

    architecture: Text
    weights: Text | None
    options: dict[str, Any]
    mean: Annotated[list[float], Field(min_length=3, max_length=3), Expected("three numbers")] | None = None
    std: Annotated[list[Positive], Field(min_length=3, max_length=3), Expected("three numbers above 0")] | None = None


class Optimizer(Target):
    """optimizer."""

    lr: Positive
    weight_decay: NotNegative = 0.0
    momentum: Fraction = 0.0


class Scheduler(Target):
    """scheduler."""

    warmup: Fraction = 0.0
    drops: Count = 0
    gamma: Share = 1.0


class Loss(Target):
    """loss."""

    label_smoothing: Fraction = 0.0
    class_weights: list[NotNegative] | None = None
    gamma: NotNegative = 0.0


class Mixing(Target):
    """mixing."""

    alpha: Positive = 1.0
    mixup_alpha: Positive = 1.0
    cutmix_alpha: Positive = 1.0


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
    max_time: (
        Annotated[
            str, AfterValidator(_check_duration), Expected("a duration above 0 such as 45m, 1h30m or 00:01:30:00")
        ]
        | None
    ) = None
    num_nodes: AtLeastOne = 1


class Head(Group):
    """head."""

    epochs: Count
    cached_views: Count
    init: Literal["random", "zero", "probe"]


class Finetune(Group):
    """finetune."""

    epochs: Count
    backbone_lr: Positive
    layer_decay: Share
    norm_weight_decay: NotNegative | None
    depth: AtLeastOne | None
    cached_views: Count
    image_sizes: (
        Annotated[list[ImageSide], Field(min_length=1), Expected("at least one number of pixels, 1 to 4096")] | None
    )
    cuda_graph: bool
    compile: bool


class Features(Group):
    """features."""

    cache: bool
    cache_gb: NotNegative
    engine: Engine


class MidEpoch(Target):
    """callbacks.mid_epoch."""

    minutes: Positive


class ImageLogging(Target):
    """callbacks.image_logger."""

    every_seconds: NotNegative = 0.0


class Average(Target):
    """callbacks.ema."""

    decay: Fraction = 0.0


class EarlyStop(Target):
    """callbacks.early_stopping."""

    monitor: Literal["val/accuracy", "val/loss"] = "val/accuracy"
    patience: AtLeastOne = 5
    min_delta: NotNegative = 0.0


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
    ema: Average | None = None
    early_stopping: EarlyStop | None = None
    progress: Target | None = None


class MLflow(Target):
    """logger.mlflow."""

    experiment_name: Text = ""
    tracking_uri: Text | None = None


class WandB(Target):
    """logger.wandb."""

    project: Text = ""
    mode: Literal["offline", "online", "disabled"] = "offline"


class Loggers(Target):
    """logger: any of those of conf/logger, and others."""

    tensorboard: Target | None = None
    csv: Target | None = None
    mlflow: MLflow | None = None
    wandb: WandB | None = None


class Train(Group):
    """flowers.train."""

    data: Folder | Shards
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    loss: Loss
    mixing: Mixing | None = None
    trainer: Trainer
    callbacks: Callbacks | None
    logger: Loggers | None = None
    head: Head
    finetune: Finetune
    features: Features
    tta: TestTimeAugmentation
    reject: Fraction | None
    seed: Seed
    group: Text | None
    resume: Text | None
    find_lr: bool
    run_dir: Text


class Evaluate(Group):
    """flowers.evaluate."""

    run: Text | None
    tta: TestTimeAugmentation | None
    split: Literal["train", "val", "test"]
    photos: Text | None
    corrections: Text | None
    on_corrupt: OnCorrupt | None
    engine: Engine | None
    accelerator: Device | None
    precision: Precision | None
    output: Text | None
    report: Text | None
    reject: Fraction | None
    strangers: Text | None


class Audit(Group):
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
    accelerator: Device | None
    precision: Precision | None
    cache_gb: NotNegative
    output: Text


class Compare(Group):
    """flowers.compare."""

    runs: Annotated[list[Text], Expected("at least two runs, runs='[A,B]'")]
    multirun: Text | None
    split: Literal["val", "test"]
    corrections: Text | None
    max_listed: Count
    output: Text | None


class Predict(Group):
    """flowers.predict."""

    run: Text | None
    tta: TestTimeAugmentation | None
    photos: Text | list[Text]
    confidence: Probability | None
    reject: Fraction | None
    output: Text | None
    engine: Engine | None
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
    tta: TestTimeAugmentation | None
    output: Text
    photos: Text | None
    on_corrupt: OnCorrupt | None
    reject: Fraction | None
    formats: Annotated[
        list[Literal["torch_export", "onnx", "int8", "hub", "web"]],
        Field(min_length=1),
        Expected("a list of torch_export, onnx, int8, hub and web"),
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


class App(Group):
    """flowers.app."""

    run: Text | None
    confidence: Probability | None
    reject: Fraction | None
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


class Recipe(Group):
    """recipe."""

    base: list[str]
    parts: dict[str, list[str]]
    best: list[str]


class Ablation(Group):
    """flowers.ablation."""

    recipe: Recipe
    settings: list[str]
    folds: Annotated[int, Field(ge=2)]
    seeds: Annotated[list[Seed], Field(min_length=1), Expected("at least one seed")]
    folder: Text
    keep_checkpoints: bool


class Soup(Group):
    """flowers.soup."""

    runs: Annotated[list[Text], Expected("at least two runs, runs='[A,B]'")]
    multirun: Text | None
    output: Text
    accelerator: Device | None
    precision: Precision | None


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
    int8: bool
    step_batch: Annotated[int, Field(ge=2)] | None
    head: BenchmarkHead
    predicted_runs: PredictedRuns
    seed: Seed
    output: Text | None
    gpu: Literal["all", "small"] | None
    peers: list[Literal["fastai", "torchvision", "timm", "ultralytics", "keras"]]
    peer_epochs: Annotated[list[AtLeastOne], Field(min_length=1), Expected("numbers of epochs, at least 1")]
    peer_seconds: Positive | None
    peer_experiment: Text | None
    peer_settings: list[str]
    peer_python: Text | None


class Probe(Group):
    """flowers.probe."""

    data: Folder | Shards
    models: Annotated[
        list[Text], Field(min_length=1), Expected("a list of architectures, models='[resnet18,A:WEIGHTS]'")
    ]
    folds: Annotated[int, Field(ge=2)]
    seed: Seed
    accelerator: Device | None
    precision: Precision | None
    cache_gb: NotNegative
    output: Text | None


class LearningCurve(Group):
    """flowers.learning_curve."""

    data: Folder | Shards
    model: Model
    run: Text | None
    stage: Literal["head", "finetune"]
    fractions: Annotated[
        list[Share],
        Field(min_length=3),
        Expected("at least three numbers above 0 and at most 1"),
    ]
    seeds: Annotated[list[Seed], Field(min_length=2), Expected("at least two seeds")]
    seed: Seed
    accelerator: Device | None
    precision: Precision | None
    cache_gb: NotNegative
    output: Text | None


class Suggest(Group):
    """flowers.suggest."""

    run: Text | None
    pool: Text | None
    count: AtLeastOne
    labels: Text | None
    method: Literal["margin_kmeans", "margin", "badge", "random"]
    simulate: AtLeastOne | None
    seed: Seed
    output: Text | None
    accelerator: Device | None
    precision: Precision | None
    cache_gb: NotNegative


PROGRAM_SCHEMAS: dict[str, type[Group]] = {
    "train": Train,
    "evaluate": Evaluate,
    "audit": Audit,
    "compare": Compare,
    "predict": Predict,
    "explain": Explain,
    "export": Export,
    "app": App,
    "sweep": Sweep,
    "ablation": Ablation,
    "soup": Soup,
    "pack": Pack,
    "benchmark": Benchmark,
    "probe": Probe,
    "learning_curve": LearningCurve,
    "suggest": Suggest,
}
