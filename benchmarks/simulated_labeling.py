"""Simulated active learning: how many labels each method of flowers.suggest needs, measured on labeled photos.

It justifies the default method. docs/audit.md has the figures.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.settings import LabelSimulation
from flowers.features.extractor import Extraction
from flowers.features.linear_probe import L2_GRID, fit_linear_probe
from flowers.features.pretrained import LabeledFeatures, extract_split
from flowers.runs.run import Run
from flowers.runtime.logging import progress_bar
from flowers.studies.learning_curve import subset_positions
from flowers.studies.suggestion import METHODS

_FIRST, _LAST = 50, 1000  # labels
_TARGETS = (200, 400, 700, 1000)  # random labels whose accuracy is to be reached
_HELD_OUT = 0.2
_L2 = L2_GRID[-1]  # the best log loss with 200 to 1,000 labels (ResNet-50, flower_photos)


def run_simulation(settings: LabelSimulation) -> None:
    """Print how many labels each method needs, over `settings.seeds` seeds, on the photos of the run.

    Raises:
        ValueError: There is no such run, or it has too few photos.
    """
    start = time.perf_counter()
    run = Run.open(settings.run, settings.root)
    data, model = run.data(), run.network(trained=False)
    how = Extraction.requested(settings, settings.cache_gb)
    splits = [extract_split(data, model, split, how) for split in ("train", "val")]
    images = LabeledFeatures(
        torch.cat([split.features for split in splits]),
        torch.cat([split.labels for split in splits]),
        [group for split in splits for group in split.groups],
    )
    sizes = range(_FIRST, min(_LAST, int((1 - _HELD_OUT) * len(images.labels)) - settings.count) + 1, settings.count)
    if len(sizes) < 2 or sizes[-1] < _TARGETS[0]:
        raise ValueError(
            f"run={settings.run}: {len(images.labels):,} photos are too few for count={settings.count}: "
            f"expected enough for {_TARGETS[0]} labels, and a fifth of them held out"
        )
    runs = [(method, seed) for method in METHODS for seed in range(settings.seeds)]
    curves = {
        (method, seed): simulate_labeling(images, len(data.classes), method, sizes, seed)
        for method, seed in progress_bar(runs, "Simulating", len(runs))
    }
    targets = [target for target in _TARGETS if target <= sizes[-1]]
    table = Table("method", *(f"as random with {target}" for target in targets), "accuracy", box=box.SIMPLE)
    means = {method: np.mean([curves[method, seed] for seed in range(settings.seeds)], axis=0) for method in METHODS}
    for method, accuracies in means.items():
        cells = []
        for target in targets:
            needed = labels_needed(sizes, accuracies, float(np.interp(target, sizes, means["random"])))
            cells.append("not reached" if needed is None else f"{needed:.0f} labels, {needed / target - 1:+.0%}")
        table.add_row(method, *cells, f"{accuracies[-1]:.4f} with {sizes[-1]}")
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print(
        f"means over {settings.seeds} seeds; {_FIRST} random labels at first, "
        f"then {settings.count} at a time by the method; "
        f"scored on a fifth of {len(images.labels):,} photos; {time.perf_counter() - start:.1f} s",
        soft_wrap=True,
    )


def simulate_labeling(
    images: LabeledFeatures, num_classes: int, method: str, sizes: Sequence[int], seed: int
) -> NDArray[np.float64]:
    """Label images as a method asks for, train the best linear head after each step, and score it on held-out images.

    Args:
        images: Labeled images; near duplicates are on one side.
        num_classes: C.
        method: A name in METHODS.
        sizes: Numbers of labels (K,), increasing. The first ones are of random images, the same for all methods.
        seed: Of the images that are held out, of the first labels, and of the method.

    Returns:
        The accuracies (K,).
    """
    positions = subset_positions(images.labels.tolist(), images.groups, seed)
    held_out = torch.from_numpy(positions < _HELD_OUT)
    pool = np.flatnonzero(~held_out.numpy())
    labeled = np.random.default_rng(seed).permutation(pool)[: sizes[0]]
    accuracies, probe = list[float](), None
    for size in sizes:
        if len(labeled) < size:
            assert probe is not None
            rest = np.setdiff1d(pool, labeled)
            features = images.features[rest]
            probabilities = probe.logits(features).double().softmax(1).numpy()
            chosen = METHODS[method](features.numpy(), probabilities, size - len(labeled), seed * _LAST + size)
            labeled = np.concatenate([labeled, rest[list(chosen)]])
        probe = fit_linear_probe(images.features[labeled], images.labels[labeled], num_classes, _L2, probe)
        predicted = probe.logits(images.features[held_out]).argmax(1)
        accuracies.append(float((predicted == images.labels[held_out]).float().mean()))
    return np.array(accuracies)


def labels_needed(sizes: Sequence[int], accuracies: NDArray[np.float64], target: float) -> float | None:
    """Return the number of labels where a curve first reaches an accuracy, between two sizes by a straight line."""
    reached = np.flatnonzero(accuracies >= target)
    if not len(reached):
        return None
    index = int(reached[0])
    if index == 0:
        return float(sizes[0])
    below, above = accuracies[index - 1 : index + 1]
    return float(sizes[index - 1] + (target - below) / (above - below) * (sizes[index] - sizes[index - 1]))
