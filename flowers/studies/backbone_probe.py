"""Rank frozen backbones by linear probes on folds that share no near duplicates."""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import READ_VERSION
from flowers.data.splits import assign_folds
from flowers.evaluation.figures import plot_accuracy_cost
from flowers.evaluation.statistics import holm, mcnemar_p, wilson_interval
from flowers.evaluation.tables import format_interval, plain
from flowers.features.extractor import CACHED, FeatureExtractor
from flowers.features.frozen_backbone import PASS_VERSION, FrozenBackbone
from flowers.features.linear_probe import cross_validated_logits
from flowers.models.backbones import check_backbone, timm_name
from flowers.models.input_settings import check_image_size, input_settings, resize_for
from flowers.models.network import Network
from flowers.runtime.files import atomic_write, atomic_write_text, cache_dir, optional_cache, read_json, write_json
from flowers.runtime.hardware import device_name, resolve_device_and_precision
from flowers.runtime.logging import configure_logging
from flowers.runtime.seeding import seeded
from flowers.runtime.text import one_line
from flowers.runtime.timing import throughput
from flowers.settings.config import build_parts
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.programs import ProbeSettings
from flowers.settings.schema.values import Interpolation

log = logging.getLogger(__name__)

PROBE_VERSION = 2  # raise it with every change of this module or of linear_probe that changes a result

_TIMING_SECONDS = 1.0  # of the measurement of each backbone, after a first batch


class Candidate(NamedTuple):
    """A backbone of the list: its architecture, and its weights or None for random ones."""

    architecture: str
    weights: str | None


@dataclass(frozen=True)
class ProbeResult:
    """The figures of a backbone.

    Args:
        architecture: See `build_backbone`.
        weights: See `build_backbone`; None for random weights.
        parameters: Number of parameters of the backbone.
        width: The number F of its features.
        milliseconds: Time of the frozen backbone for an image.
        measured: When that was measured: date and time.
        load: The load average of the machine then, None where it is unknown.
        correct: Whether each of the N images, in the order of the paths, is classified correctly by the other folds.
        l2: The penalty of each fold.
        is_remembered: Whether all this comes from an earlier call.
    """

    architecture: str
    weights: str | None
    parameters: int
    width: int
    milliseconds: float
    measured: str
    load: float | None
    correct: list[bool]
    l2: list[float]
    is_remembered: bool = False

    @property
    def accuracy(self) -> float:
        """The share of the images that are classified correctly."""
        return sum(self.correct) / len(self.correct)

    @property
    def name(self) -> str:
        """The architecture, and its weights if they are random, a file, or not the default ones."""
        weights = Path(self.weights).name if self.weights else "random"
        return self.architecture if weights == "DEFAULT" else f"{self.architecture}:{weights}"


def run_probe(settings: ProbeSettings) -> float:
    """Rank the backbones of `settings.models` and print the table.

    Args:
        settings: Those of `flowers.probe`.

    Returns:
        The accuracy of the best backbone.

    Raises:
        ValueError: A setting is wrong, the images cannot be used, or none of the backbones works.
    """
    configure_logging()  # Lightning is imported by now
    candidates = [parse_candidate(entry) for entry in settings.models]
    device, precision = resolve_device_and_precision(settings.accelerator, settings.precision)
    size = {"resize": settings.data.image_size, "interpolation": "bilinear"}  # of each backbone: see _probe
    data = ImageDataModule.from_settings(**build_parts(settings.data) | size)
    images = ProbeImages(data, settings.folds, settings.seed, settings.data.resize, settings.data.interpolation)
    console = Console(highlight=False, markup=False, emoji=False)
    results, reasons = [], []
    for candidate in candidates:
        try:
            result = _probe(candidate, images, device, precision, settings.seed, settings.cache_gb)
            console.print(f"{one_line(result.name)}: accuracy {result.accuracy:.4f}", soft_wrap=True)
            results.append(result)
        except (ValueError, RuntimeError) as error:  # RuntimeError: a network that does not take these images
            reasons.append(one_line(str(error).splitlines()[0]))
            log.warning("skipped %s: %s", one_line(candidate.architecture), reasons[-1])
    if not results:
        raise ValueError(f"none of the {len(candidates)} backbones works; the last one: {reasons[-1]}")
    results.sort(key=lambda result: (-result.accuracy, result.milliseconds))
    p_values = against_best(results)
    console.print(_ranking(results, p_values))
    close = [one_line(result.name) for result, p in zip(results[1:], p_values, strict=True) if p >= 0.05]
    console.print(
        f"cannot be told apart from {one_line(results[0].name)} on these images: {', '.join(close) or 'none'}"
        " (p at least 0.05)",
        soft_wrap=True,
    )
    n = len(images.labels)
    console.print(f"{n:,} images, {settings.folds} folds, {device_name(device)}, {precision}", soft_wrap=True)
    if any(result.is_remembered for result in results):
        console.print("* measured earlier, on this machine", soft_wrap=True)
    if settings.output:
        _write(
            Path(settings.output),
            results,
            p_values,
            {"images": n, "folds": settings.folds, "device": device_name(device)},
        )
        console.print(one_line(f"written to {settings.output}"), soft_wrap=True)
    return results[0].accuracy


def parse_candidate(entry: str) -> Candidate:
    """Parse `architecture`, `architecture:weights` or `architecture:null`."""
    architecture, colon, weights = str(entry).partition(":")
    if not architecture or (colon and not weights):
        raise ValueError(f"models: {one_line(entry)}: expected architecture, architecture:weights or architecture:null")
    return Candidate(architecture, None if weights == "null" else weights or "DEFAULT")


class ProbeImages:
    """The images of train and val, with a fold for each. Those of test stay unseen.

    Args:
        data: The images.
        folds: Number of folds.
        seed: Seed of the folds.
        resize: Of all backbones; None for that of each.
        interpolation: Likewise.
    """

    def __init__(
        self, data: ImageDataModule, folds: int, seed: int, resize: int | None, interpolation: Interpolation | None
    ) -> None:
        self.data, self.resize, self.interpolation = data, resize, interpolation
        records = [record for record in data.records if record.split != "test"]
        fold_of_path = dict(zip((r.path for r in records), assign_folds(records, folds, seed), strict=True))
        self.splits = [split for split in ("train", "val") if data.counts(split)]
        datasets = [data.dataset(split) for split in self.splits]
        paths = [path for dataset in datasets for path in dataset.paths]
        self.labels = torch.tensor([label for dataset in datasets for label in dataset.labels])
        self.fold_of = torch.tensor([fold_of_path[path] for path in paths])
        digests = [digest for dataset in datasets for digest in dataset.digests]
        rows = zip(paths, digests, self.labels.tolist(), self.fold_of.tolist(), strict=True)
        self.sha256 = hashlib.sha256(json.dumps([*rows]).encode()).hexdigest()


def _probe(
    candidate: Candidate, images: ProbeImages, device: torch.device, precision: str, seed: int, cache_gb: float
) -> ProbeResult:
    """Return the figures of a backbone: remembered ones, or else new ones.

    Raises:
        ValueError: The backbone cannot be had.
    """
    architecture, weights = candidate
    check_backbone(architecture, None, {})
    own, image_size = input_settings(architecture), images.data.preprocessing.image_size
    options = {"img_size": image_size} if own.is_fixed and own.image_size != image_size else {}
    check_image_size(own, image_size, architecture, options)
    resize, interpolation = images.resize or resize_for(own, image_size), images.interpolation or own.interpolation
    depth = images.data.preprocessing.bit_depth
    preprocessing = Preprocessing(image_size, resize, interpolation, own.mean, own.std, depth)
    data = images.data.resized(preprocessing)
    key = {
        "versions": _versions(architecture),
        "backbone": [architecture, _weights_id(weights, seed), options],
        "transform": data.transform_settings(),
        "normalize": [own.mean, own.std],
        "images": images.sha256,
        "device": [platform.node(), device_name(device), precision],
    }
    file = cache_dir() / "probes" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    if (found := _recall(file)) is not None:
        return found
    with seeded(seed):
        model = Network(architecture, data.classes, weights, options, preprocessing)
    model.eval().to(device)
    extractor = FeatureExtractor(data, model, precision, CACHED.replace(cache_gb=cache_gb))
    name = one_line(architecture)
    features = torch.cat([extractor.extract(data.dataset(split), f"{name}, {split}") for split in images.splits])
    milliseconds = _measure(model, data, images.splits[0], precision)
    logits, l2 = cross_validated_logits(features, images.labels, len(data.classes), images.fold_of)
    result = ProbeResult(
        architecture=architecture,
        weights=weights,
        parameters=sum(parameter.numel() for parameter in model.backbone.parameters()),
        width=model.head.in_features,
        milliseconds=milliseconds,
        measured=time.strftime("%Y-%m-%d %H:%M"),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        correct=(logits.argmax(1) == images.labels).tolist(),
        l2=l2,
    )
    with optional_cache(file):
        atomic_write_text(file, json.dumps(asdict(result)), durable=False)
    return result


def against_best(results: Sequence[ProbeResult]) -> list[float]:
    """Return for each result but the first, the best, the p value of McNemar's test against it, adjusted by Holm."""
    best = torch.tensor(results[0].correct)
    p_values = []
    for other in results[1:]:
        correct = torch.tensor(other.correct)
        p_values.append(mcnemar_p(int((best & ~correct).sum()), int((correct & ~best).sum())))
    return holm(p_values)


def _measure(model: Network, data: ImageDataModule, split: str, precision: str) -> float:
    """Return the milliseconds that the frozen backbone takes for an image, in batches of its usual size."""
    frozen = FrozenBackbone(model, precision)
    dataset = data.dataset(split)
    count = min(frozen.batch_size, len(dataset))
    batch = torch.stack([dataset[index][0] for index in range(count)])
    batch = batch.repeat(-(-frozen.batch_size // count), 1, 1, 1)[: frozen.batch_size]

    def work() -> int:
        return len(frozen(batch))

    work()
    return 1000 / throughput(work, _TIMING_SECONDS, model.device)


def _versions(architecture: str) -> list[str]:
    packages = ["torch", "torchvision", "pillow", "scipy"] + (["timm"] if timm_name(architecture) is not None else [])
    return [f"{PROBE_VERSION} {PASS_VERSION} {READ_VERSION}", *map(version, packages)]


def _weights_id(weights: str | None, seed: int) -> str:
    """Return what stays the same as long as the weights do: a name, the checksum of a file, or the seed."""
    if weights is None:
        return f"seed {seed}"
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest() if Path(weights).is_file() else weights


def _recall(file: Path) -> ProbeResult | None:
    if not file.is_file():
        return None
    try:
        return ProbeResult(**{**read_json(file), "is_remembered": True})
    except (ValueError, TypeError) as error:
        log.warning("cannot use the remembered probe, computing it again: %s", one_line(error))
        return None


def _ranking(results: Sequence[ProbeResult], p_values: Sequence[float]) -> Table:
    figures = ("MB", "F", "ms/image", "accuracy", "95 % interval", "p")
    table = Table("backbone", *(Column(name, no_wrap=True) for name in figures), box=box.SIMPLE)
    for result, p in zip(results, [None, *p_values], strict=True):
        interval = wilson_interval(sum(result.correct), len(result.correct))
        table.add_row(
            plain(result.name),
            f"{result.parameters * 4 / 1e6:.0f}",
            str(result.width),
            f"{result.milliseconds:.1f}" + ("*" if result.is_remembered else ""),
            f"{result.accuracy:.4f}",
            format_interval(interval),
            "" if p is None else f"{p:.2g}",
        )
    return table


def _write(folder: Path, results: Sequence[ProbeResult], p_values: Sequence[float], facts: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for result, p in zip(results, [None, *p_values], strict=True):
        figures = {name: value for name, value in asdict(result).items() if name != "correct"}
        interval = wilson_interval(sum(result.correct), len(result.correct))
        rows.append(figures | {"accuracy": result.accuracy, "interval": interval, "p_against_best": p})
    write_json({**facts, "backbones": rows}, folder / "probe.json")
    figure = plot_accuracy_cost(
        [(result.name, result.milliseconds, sum(result.correct), bool(result.weights)) for result in results],
        len(results[0].correct),
    )
    with atomic_write(folder / "accuracy_cost.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
