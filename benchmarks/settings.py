"""The settings of the programs of this folder: keys, types and ranges. Defaults and texts are in conf/ beside it."""

from typing import Annotated, Literal

from pydantic import Field

from flowers.settings.registry import enter
from flowers.settings.schema.training import Folder, Model, Optimizer, Scheduler, Shards, Trainer
from flowers.settings.schema.values import (
    AtLeastOne,
    Count,
    DeviceChoice,
    Expected,
    Group,
    NotNegative,
    Positive,
    Seed,
    Text,
)


class PredictedRuns(Group):
    """predicted_runs."""

    report: Annotated[list[Count], Field(min_length=2, max_length=2), Expected("the epochs of both stages, [5, 45]")]
    head_only: Annotated[list[Count], Field(min_length=2, max_length=2), Expected("the epochs of both stages, [50, 0]")]


class SpeedHead(Group):
    """head."""

    epochs: AtLeastOne


class Speed(Group):
    """benchmarks.speed."""

    data: Folder | Shards
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    trainer: Trainer
    rounds: AtLeastOne
    seconds: Positive
    int8: bool
    step_batch: Annotated[int, Field(ge=2)] | None
    head: SpeedHead
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


class LabelSimulation(DeviceChoice):
    """benchmarks.label_simulation."""

    run: Text
    root: Text | None
    seeds: AtLeastOne
    count: AtLeastOne
    cache_gb: NotNegative


SCHEMAS: dict[str, type[Group]] = {"speed": Speed, "label_simulation": LabelSimulation}

# As the entry points of an installed package would.
enter("programs", {name: f"benchmarks.{name}:{schema.__name__}" for name, schema in SCHEMAS.items()})
