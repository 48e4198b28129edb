"""The settings of flowers.train."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from flowers.settings.schema.values import (
    PAIR,
    Accelerator,
    AtLeastOne,
    Balance,
    Batches,
    BitDepth,
    Count,
    Engine,
    Expected,
    FilePath,
    Fraction,
    Group,
    GroupBy,
    ImageSide,
    Interpolation,
    Layout,
    Megapixels,
    NotNegative,
    OnCorrupt,
    Parts,
    Positive,
    Precision,
    Probability,
    Seed,
    Share,
    TableGroupBy,
    Target,
    TestTimeAugmentation,
    Text,
    check_duration,
    check_no_password,
)


class Split(Group):
    """How a folder of images is split."""

    val_fraction: Fraction
    test_fraction: Fraction
    folds: Literal[0] | Annotated[int, Field(ge=2)]
    fold: Count
    split_seed: Count
    split_file: FilePath | None
    corrections: FilePath | None
    group_by: GroupBy
    duplicate_threshold: Share
    on_corrupt: OnCorrupt
    merge_similar_names: bool


class ClassFolders(Split):
    """How a folder with one subfolder per class is read and split."""

    layout: Layout


class LabelColumns(Group):
    """Which columns of a table hold the paths and the labels of photos."""

    path: Text | None
    label: Text | None


class Columns(LabelColumns):
    """data.columns."""

    split: Text | Literal[False] | None
    group: Text | Literal[False] | None


class Resizing(Group):
    """How images are resized; null takes the value that suits the weights of the model."""

    image_size: ImageSide
    resize: Annotated[int, Field(ge=1, le=8192)] | None
    interpolation: Interpolation | None


class Pixels(Resizing):
    """How images become batches, from a folder or from shards."""

    resize: Annotated[int, Field(ge=1, le=8192)]
    interpolation: Interpolation
    crop_scale: Annotated[list[Share], *PAIR, Expected("[smallest, largest], above 0 and at most 1")]
    crop_ratio: Annotated[list[Positive], *PAIR, Expected("[smallest, largest], above 0")]
    bit_depth: BitDepth | None
    hflip_prob: Probability
    brightness: NotNegative
    contrast: NotNegative
    saturation: NotNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    balance: Balance
    batch_size: AtLeastOne
    num_workers: Count | None
    decoded_cache_fraction: Fraction


class Readable(Group):
    """Which images are read."""

    max_megapixels: Megapixels


class ModelPixels(Pixels, Readable):
    """How a configuration sets them."""

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

    root: FilePath
    source: Target | None
    augmentation: Augmentation | None = None


class Folder(ClassFolders, ModelPixels, Source):
    """data=folder."""


class Table(Split, ModelPixels, Source):
    """data=table."""

    root: FilePath | None  # type: ignore[assignment]
    table: FilePath
    columns: Columns
    group_by: TableGroupBy


class Shards(Remote, ModelPixels, Source):
    """data=shards."""

    balance: Literal["none", "weights"]
    packed: bool
    corrections: FilePath | None
    s3_endpoint: Text | None


Data = Folder | Table | Shards


class Model(Group):
    """model."""

    architecture: Text
    weights: FilePath | None
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
        Annotated[str, AfterValidator(check_duration), Expected("a duration above 0 such as 45m, 1h30m or 00:01:30:00")]
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


class Callbacks(Parts):
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
    tracking_uri: (
        Annotated[
            Text,
            AfterValidator(check_no_password),
            Expected("an address without a password, which $MLFLOW_TRACKING_PASSWORD gives"),
        ]
        | None
    ) = None


class WandB(Target):
    """logger.wandb."""

    project: Text = ""
    mode: Literal["offline", "online", "disabled"] = "offline"


class Loggers(Parts):
    """logger: any of those of conf/logger, and others."""

    tensorboard: Target | None = None
    csv: Target | None = None
    mlflow: MLflow | None = None
    wandb: WandB | None = None


class TrainSettings(Group):
    """flowers.train."""

    data: Data
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
    resume: FilePath | None
    find_lr: bool
    run_dir: FilePath
