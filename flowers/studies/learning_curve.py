"""Learning curves: the accuracy with parts of the training photos, and what more photos would give."""

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from flowers.data.splits import SplitRecord, load_split, save_split
from flowers.evaluation.figures import plot_learning_curve
from flowers.evaluation.power_law import (
    CURVE_FILE,
    accuracy_band,
    describe_learning_curve,
    fit_learning_curve,
)
from flowers.features.extractor import Extraction
from flowers.features.linear_probe import choose_l2, fit_linear_probe
from flowers.features.pretrained import LabeledFeatures, extract_split, pretrained_model
from flowers.models.backbones import local_weights
from flowers.runs.predictions import load_run_predictions
from flowers.runs.resume import read_start
from flowers.runs.run import Run
from flowers.runs.run_folder import SPLIT_FILE, START_FILE, read_result
from flowers.runtime.files import atomic_write, write_json
from flowers.runtime.interrupt import resumable
from flowers.runtime.logging import configure_logging, progress_bar
from flowers.runtime.text import one_line, write_csv
from flowers.settings.config import compose_settings
from flowers.settings.overrides import check_overrides, last_value, quote_override
from flowers.settings.schema.programs import LearningCurveSettings
from flowers.settings.schema.training import TrainSettings
from flowers.settings.stored_overrides import plain_overrides
from flowers.training.in_process import group_override, train_in_process

_LEAST = 3  # sizes that a power law is fitted to
_POINTS = 60  # of the drawn curve


def run_learning_curve(settings: LearningCurveSettings) -> float:
    """Measure and print a learning curve; write learning_curve.json, .csv and .png.

    Args:
        settings: Those of `flowers.learning_curve`.

    Returns:
        The predicted accuracy with twice the photos.

    Raises:
        ValueError: A setting is wrong, or the run, the images or the weights cannot be used.
    """
    configure_logging()  # Lightning is imported by now
    start = time.perf_counter()
    fractions, seeds = sorted({*settings.fractions}), list(dict.fromkeys(settings.seeds))
    output = settings.output or settings.run
    run = Run.open(settings.run, settings.root) if settings.run else None
    if settings.stage == "finetune":
        if run is None or output is None:
            raise ValueError("stage=finetune trains with the settings of a run: give run=FOLDER")
        photos, correct = finetuned_curve(run, Path(output, "learning_curve"), fractions, seeds)
    else:
        how = Extraction.requested(settings, settings.cache_gb)
        if run is None:
            data, model = pretrained_model(settings.data, settings.model, settings.seed)
        else:
            data, model = run.data(), run.network(trained=False)
        train, val = (extract_split(data, model, split, how) for split in ("train", "val"))
        photos, correct = probed_curve(train, val, len(data.classes), fractions, seeds)
    content = {"stage": settings.stage, "seeds": seeds, **summarize_curve(photos, correct)}
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(_table(content))
    for line in describe_learning_curve(content):
        console.print(line, soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.1f} s", soft_wrap=True)
    if output:
        _write(Path(output), content, seeds, correct)
        console.print(one_line(f"written: {Path(output, CURVE_FILE)}, .csv and .png"), soft_wrap=True)
    return float(content["twice"]["accuracy"])


def subset_positions(labels: Sequence[object], groups: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return a position (N,) from 0 to below 1 for each image. Those below a fraction are the subset of that size.

    The subsets of a seed are nested. Each holds its share of each class, at least one image, but for a group of near
    duplicates, which it holds whole or not at all.

    Args:
        labels: The class of each image.
        groups: The group of near duplicates of each image.
        seed: Seed of the order.
    """
    keys = [hashlib.sha256(f"{seed} {group}".encode()).digest() for group in groups]
    total, seen = Counter(labels), Counter[object]()
    first: dict[str, float] = {}
    for index in sorted(range(len(groups)), key=keys.__getitem__):
        position = seen[labels[index]] / total[labels[index]]
        first[groups[index]] = min(position, first.get(groups[index], 1.0))
        seen[labels[index]] += 1
    return np.array([first[group] for group in groups])


def distinct_fractions(positions: NDArray[np.float64], fractions: Sequence[float]) -> list[float]:
    """Return the fractions with different numbers of images, in increasing order; of equal ones the largest.

    Raises:
        ValueError: There are fewer than three.
    """
    largest = {int((positions < fraction).sum()): fraction for fraction in fractions}
    if len(largest) < _LEAST:
        raise ValueError(
            f"fractions={list(fractions)}: {len(positions)} training photos, of which near duplicates stay together, "
            f"give {len(largest)} subset(s): expected at least {_LEAST}"
        )
    return list(largest.values())


def probed_curve(
    train: LabeledFeatures, val: LabeledFeatures, num_classes: int, fractions: Sequence[float], seeds: Sequence[int]
) -> tuple[list[int], NDArray[np.bool_]]:
    """Score the best linear head for each subset of the training images on the validation images.

    One penalty serves all subsets: the best in a cross-validation of the largest one of at most half of the images.

    Args:
        train: The training images.
        val: The validation images.
        num_classes: C.
        fractions: The shares of the training images, K of them in increasing order.
        seeds: Of the subsets, S of them.

    Returns:
        The mean number of images of each fraction; and whether each validation image is classified correctly:
        (S, K, N).
    """
    labels = train.labels.tolist()
    positions = [subset_positions(labels, train.groups, seed) for seed in seeds]
    fractions = distinct_fractions(positions[0], fractions)
    half = max((fraction for fraction in fractions if fraction <= 0.5), default=fractions[0])
    chosen = torch.from_numpy(positions[0] < half)
    l2 = choose_l2(train.features[chosen], train.labels[chosen], num_classes, seeds[0])
    correct = np.empty((len(seeds), len(fractions), len(val.labels)), dtype=np.bool_)
    whole: NDArray[np.bool_] | None = None
    cells = list(itertools.product(enumerate(positions), enumerate(fractions)))
    for (row, position), (column, fraction) in progress_bar(cells, "Linear probes", len(cells)):
        chosen = torch.from_numpy(position < fraction)
        if whole is not None and chosen.all():  # the same for all seeds
            correct[row, column] = whole
            continue
        probe = fit_linear_probe(train.features[chosen], train.labels[chosen], num_classes, l2)
        correct[row, column] = (probe.logits(val.features).argmax(1) == val.labels).numpy()
        whole = correct[row, column] if chosen.all() else whole
    return _mean_sizes(positions, fractions), correct


def _mean_sizes(positions: Sequence[NDArray[np.float64]], fractions: Sequence[float]) -> list[int]:
    return [round(np.mean([(each < fraction).sum() for each in positions])) for fraction in fractions]


def finetuned_curve(
    run: Run, folder: Path, fractions: Sequence[float], seeds: Sequence[int]
) -> tuple[list[int], NDArray[np.bool_]]:
    """Train a run's recipe on each subset of its training images. Started again, train what is left.

    Args:
        run: The run, whose settings and split are used.
        folder: For the runs.
        fractions: See `probed_curve`.
        seeds: Of the subsets and of the training.

    Returns:
        See `probed_curve`.

    Raises:
        ValueError: The run is damaged, or has no folder of images; or a training fails.
    """
    if links := [path for path in (folder, *folder.rglob("*")) if path.is_symlink()]:
        raise ValueError(
            f"{one_line(links[0])} is a link, through which nothing is written: delete it, or give output="
        )
    folder = folder.resolve()
    records = load_split(run.folder / SPLIT_FILE)
    train = [record for record in records if record.split == "train"]
    labels, groups = [record.label for record in train], [record.group for record in train]
    positions = [subset_positions(labels, groups, seed) for seed in seeds]
    fractions = distinct_fractions(positions[0], fractions)
    cwd, stored = read_start(run.folder)
    overrides = _absolute_paths(plain_overrides(stored, str(run.folder)), cwd)
    images = run.image_settings
    if images.get("packed"):
        raise ValueError(f"run={run.folder}: stage=finetune needs a run on a folder of images, and not on shards")
    data_root = Path(_below(cwd, images["root"])).resolve()
    overrides += [f"data.root={quote_override(data_root)}", "data.source=null"]
    model = compose_settings(
        check_overrides(overrides, "train"), TrainSettings
    ).model  # the checkpoint may name another one
    if model.weights is not None:
        local_weights(model.architecture, model.weights)  # a run folder starts no download
    rows = []
    with resumable("python -m flowers.learning_curve stage=finetune …"):
        for seed, position in zip(seeds, positions, strict=True):
            kept = [[path for path, at in zip(train, position, strict=True) if at < fraction] for fraction in fractions]
            rest = [record for record in records if record.split == "val"]
            runs = [folder / f"seed-{seed}-{len(subset)}" for subset in kept]
            for run_dir, subset in zip(runs, kept, strict=True):
                _train_subset(overrides, run_dir, [*subset, *rest], seed)
            rows.append([load_run_predictions(run_dir, "val").correct.numpy() for run_dir in runs])
    return _mean_sizes(positions, fractions), np.array(rows)


def _below(cwd: str, path: str) -> str:
    """Return a path that was relative to the working directory of a run, if there is something; otherwise as it is."""
    return str(Path(cwd, path)) if Path(cwd, path).exists() else path


def _absolute_paths(overrides: Sequence[str], cwd: str) -> list[str]:
    found = {
        key: value
        for key in ("model.weights", "data.corrections", "data.table")
        if (value := last_value(overrides, key))
    }
    return [*overrides, *(f"{key}={quote_override(_below(cwd, value))}" for key, value in found.items())]


def _train_subset(overrides: Sequence[str], run_dir: Path, records: Sequence[SplitRecord], seed: int) -> None:
    if read_result(run_dir) is not None:
        return
    split_file = run_dir.with_name(f"{run_dir.name}.csv")
    save_split(sorted(records), split_file)
    own = [f"seed={seed}", f"data.split_file={quote_override(split_file)}", f"hydra.run.dir={quote_override(run_dir)}"]
    resume = [f"resume={quote_override(run_dir)}"] if (run_dir / START_FILE).is_file() else []
    train_in_process(check_overrides([group_override(run_dir.parent), *overrides, *own, *resume], "train"))


def summarize_curve(photos: Sequence[int], correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Fit the power law, and predict twice the photos; and, where there are enough sizes, all photos from half of them.

    Args:
        photos: The numbers of training photos (K,), increasing.
        correct: Whether each of N validation photos is classified correctly, for each of S draws: (S, K, N).

    Returns:
        Plain Python for learning_curve.json, `plot_learning_curve` and `describe_learning_curve`.
    """
    accuracies = correct.mean(axis=2)
    law = fit_learning_curve(photos, correct)
    drawn = np.unique(np.geomspace(photos[0], 2 * photos[-1], _POINTS).round().astype(int))
    low, high = accuracy_band(photos, correct, drawn.tolist())
    content: dict[str, Any] = {
        "validation_photos": correct.shape[2],
        "points": [
            {"photos": int(size), "accuracy": float(values.mean()), "accuracies": values.tolist()}
            for size, values in zip(photos, accuracies.T, strict=True)
        ],
        "law": law._asdict(),
        "curve": {
            "photos": drawn.tolist(),
            "accuracy": law.accuracy(drawn).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
        },
        "twice": {
            "photos": int(drawn[-1]),
            "accuracy": float(law.accuracy(drawn[-1])),
            "interval": [float(low[-1]), float(high[-1])],
        },
        "check": None,
    }
    half = sum(size <= photos[-1] / 2 + 1 for size in photos)
    if half >= _LEAST:
        bounds = accuracy_band(photos[:half], correct[:, :half], photos[-1:])[:, 0].tolist()
        predicted = fit_learning_curve(photos[:half], correct[:, :half]).accuracy(photos[-1])
        content["check"] = {"photos": int(photos[half - 1]), "accuracy": float(predicted), "interval": bounds}
    return content


def _table(content: Mapping[str, Any]) -> Table:
    table = Table("training photos", "accuracy", "lowest", "highest", box=box.SIMPLE)
    for point in content["points"]:
        values = [point["accuracy"], min(point["accuracies"]), max(point["accuracies"])]
        table.add_row(f"{point['photos']:,}", *(f"{value:.4f}" for value in values))
    return table


def _write(folder: Path, content: Mapping[str, Any], seeds: Sequence[int], correct: NDArray[np.bool_]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(content, folder / CURVE_FILE)
    rows = [
        [point["photos"], seed, point["accuracies"][row], int(correct[row, column].sum()), correct.shape[2]]
        for column, point in enumerate(content["points"])
        for row, seed in enumerate(seeds)
    ]
    header = ["training_photos", "seed", "accuracy", "correct", "validation_photos"]
    write_csv((folder / CURVE_FILE).with_suffix(".csv"), [header, *rows])
    with atomic_write((folder / CURVE_FILE).with_suffix(".png")) as temporary:
        plot_learning_curve(content, is_page=False).savefig(temporary, format="png", dpi=150)
