"""Which unlabeled photos to label next: methods of active learning on the features of a trained run."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Column, Table

from flowers.data.images import ImageCheck, check_images, pixels_of, read_image
from flowers.data.near_duplicates import find_duplicates
from flowers.data.sources.folder import FolderSource
from flowers.data.sources.listing import expand_image_paths
from flowers.data.splits import ImageRecord
from flowers.data.splitter import Splitter
from flowers.evaluation.tables import plain
from flowers.features.extractor import extract_features
from flowers.runs.predictions import predict_features
from flowers.runs.run import Run
from flowers.runtime.hardware import check_devices
from flowers.runtime.logging import configure_logging
from flowers.runtime.text import listed_reasons, one_line, write_csv
from flowers.settings.schema.programs import SuggestSettings
from flowers.studies.audit import preview_images
from flowers.studies.labeling import copy_labeled_photos
from flowers.studies.review_page import labeling_content, write_page

log = logging.getLogger(__name__)

_CANDIDATES = 5  # photos that are clustered, for each one that is chosen
_KMEANS_STEPS = 10
_SHOWN = 20  # rows on the terminal
_THUMBNAIL_SIDE = 240  # pixels, on the page: as large as it shows them


class Suggestion(NamedTuple):
    """A photo to label.

    Attributes:
        rank: From 1, the photo to label first.
        path: The file.
        label: The most likely class.
        probability: Its calibrated probability, from 0 to 1.
        uncertainty: 1 minus the difference between the two largest probabilities, from 0 to 1.
        sha256: SHA-256 of the file, hexadecimal.
    """

    rank: int
    path: str
    label: str
    probability: float
    uncertainty: float
    sha256: str


def run_suggestion(settings: SuggestSettings) -> int:
    """Print or write which photos of `settings.pool` to label next.

    With `settings.labels`, copy photos that were labeled instead.

    Returns:
        How many photos are suggested, or were labeled.

    Raises:
        ValueError: A setting is wrong, or there is no such run or pool, or nothing is left of the pool.
    """
    configure_logging()  # Lightning is imported by now
    console = Console(highlight=False, markup=False, emoji=False)
    if settings.labels:
        if not settings.output:
            raise ValueError(
                f"labels={settings.labels}: copied where to? Give output=FOLDER, with one subfolder per class"
            )
        limit = pixels_of(settings.max_megapixels)
        counts = copy_labeled_photos(Path(settings.labels), Path(settings.output), limit)
        of_each = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
        console.print(one_line(f"{counts.total()} photos are in {settings.output}: {of_each}"), soft_wrap=True)
        return counts.total()
    check_devices(settings.accelerator or "auto", key="accelerator")
    if not settings.pool:
        raise ValueError("which photos? Give pool=FOLDER, a folder of photos without labels")
    run = Run.open(settings.run, settings.root).replace(
        accelerator=settings.accelerator,
        precision=settings.precision,
        engine="pytorch",
        max_megapixels=settings.max_megapixels,
    )
    rows = suggest_photos(run, settings.pool, settings.count, settings.method, settings.seed)
    if settings.output:
        table_file = Path(settings.output)
        page = table_file.with_suffix(".html")
        write_csv(table_file, [["rank", "path", "class", "probability", "uncertainty"], *map(_cells, rows)])
        files = FolderSource(Path(), max_pixels=run.max_pixels)
        previews = preview_images(files, [row.path for row in rows], side=_THUMBNAIL_SIDE)
        classes = run.hparams.classes
        guesses = [(classes.index(row.label), row.probability) for row in rows]
        write_page(page, labeling_content([(row.path, row.sha256) for row in rows], previews, guesses, classes))
        console.print(
            one_line(f"{len(rows)} photos to label next: {table_file} and {page.name}, a page to label them"),
            soft_wrap=True,
        )
        return len(rows)
    table = Table("rank", Column("image", overflow="fold"), "class", "probability", "uncertainty", box=box.SIMPLE)
    for row in rows[:_SHOWN]:
        table.add_row(*map(plain, _cells(row)))
    console.print(table)
    if rows[_SHOWN:]:
        console.print(f"and {len(rows) - _SHOWN} more: give output=FILE.csv for all")
    return len(rows)


def _cells(row: Suggestion) -> list[object]:
    return [row.rank, row.path, row.label, f"{row.probability:.6f}", f"{row.uncertainty:.6f}"]


def suggest_photos(run: Run, pool: str | Path, count: int, method: str, seed: int = 0) -> list[Suggestion]:
    """Return which photos of a folder to label next, the first one first.

    Photos that the run already has, near duplicates of these, and all but one of the near duplicates in the folder are
    left out. So are files that cannot be read. Lines in the log name or count them.

    Args:
        run: The run, whose trained model is used.
        pool: The folder; its subfolders are searched too.
        count: How many photos, at most.
        method: A name in METHODS.
        seed: Of what the method draws at random.

    Raises:
        ValueError: The run is damaged, there is no such folder, or nothing is left of it.
    """
    _ = run.settings  # a damaged run is refused before photos are read
    checks = _readable(Path(pool), run.max_pixels)
    names = _unknown(checks, run, Path(pool))
    digests = [checks[name].sha256 for name in names]
    data, dataset = run.loose_photos(Path(pool).resolve(), names, digests)
    model = run.network()
    features = extract_features(model, data, dataset, "pool", run.extraction(model))
    probabilities = predict_features(model, features, dataset).probabilities(run.temperature).numpy()
    chosen = METHODS[method](features.float().numpy(), probabilities, min(count, len(names)), seed)
    doubts = uncertainty(probabilities)
    return [
        Suggestion(
            rank,
            str(Path(pool, names[index])),
            model.classes[probabilities[index].argmax()],
            float(probabilities[index].max()),
            float(doubts[index]),
            digests[index],
        )
        for rank, index in enumerate(chosen, start=1)
    ]


def _readable(pool: Path, max_pixels: int) -> dict[str, ImageCheck]:
    """Return the checks of the files in a folder that can be read; name the others in the log."""
    try:
        files = expand_image_paths(str(pool)) if pool.is_dir() else []
    except ValueError:  # an empty folder
        files = []
    if not files:
        raise ValueError(f"pool={one_line(pool)}: no photos there: expected a folder of photos without labels")
    checks = check_images(pool, [file.relative_to(pool).as_posix() for file in files], max_pixels)
    if bad := {name: check.reason for name, check in checks.items() if check.reason}:
        log.warning("\n".join([f"ignoring {len(bad):,} files that cannot be read:", *listed_reasons(bad)]))
    return {name: check for name, check in checks.items() if not check.reason}


def _unknown(checks: dict[str, ImageCheck], run: Run, pool: Path) -> list[str]:
    """Return the files that show something else than the photos of the run and than each other."""
    known = {record.sha256 for record in run.stored_split or ()}
    images = list[ImageRecord]()
    source = None
    try:
        source = run.data(whole=True).source
        images = [image for image in source.images if image.sha256 in known and image.phash]
    except (ValueError, OSError) as error:
        reason = one_line(str(error).splitlines()[0])
        log.warning("near duplicates of the photos of the run are not recognized, only copies: %s", reason)
    fresh = [name for name, check in checks.items() if check.sha256 not in known]
    places = [*(source / image.path for image in images if source), *(pool / name for name in fresh)]
    digests = [*(image.sha256 for image in images), *(checks[name].sha256 for name in fresh)]
    hashes = [*(image.phash for image in images), *(checks[name].phash for name in fresh)]
    numbers = find_duplicates(
        digests, hashes, lambda index: read_image(places[index], run.max_pixels), Splitter().duplicate_threshold
    ).groups
    of_run = set(numbers[: len(images)])
    seen, left = set(of_run), list[str]()
    near, repeated = 0, 0
    for name, number in zip(fresh, numbers[len(images) :], strict=True):
        near += number in of_run
        repeated += number in seen - of_run
        if number not in seen:
            left.append(name)
        seen.add(number)
    if len(left) < len(checks):
        log.warning(
            "left out of the %d photos of the pool: %d that the run has, %d near duplicates of these, "
            "%d near duplicates of others in the pool",
            *(len(checks), len(checks) - len(fresh), near, repeated),
        )
    if not left:
        raise ValueError(f"pool={one_line(pool)}: nothing is left to label: expected photos that the run does not have")
    return left


def uncertainty(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return 1 minus the margin (N,), the difference between the two largest of the probabilities (N, C)."""
    ordered = np.sort(probabilities, axis=1)
    return np.asarray(1 - (ordered[:, -1] - ordered[:, -2]))


def choose_random(features: NDArray[Any], probabilities: NDArray[Any], count: int, seed: int) -> list[int]:
    """Choose any images; see METHODS."""
    return [*map(int, np.random.default_rng(seed).permutation(len(features))[:count])]


def choose_margin(features: NDArray[Any], probabilities: NDArray[Any], count: int, seed: int) -> list[int]:
    """Choose the most uncertain images; see METHODS."""
    return [*map(int, np.argsort(-uncertainty(probabilities), kind="stable")[:count])]


def choose_margin_kmeans(features: NDArray[Any], probabilities: NDArray[Any], count: int, seed: int) -> list[int]:
    """Cluster the most uncertain images, and choose one for each cluster (arXiv:1901.05954); see METHODS.

    The clusters are those of k-means with the uncertainties as weights, on features of length 1.
    """
    doubts = uncertainty(probabilities)
    candidates = np.argsort(-doubts, kind="stable")[: _CANDIDATES * count]
    points = features[candidates] / np.linalg.norm(features[candidates], axis=1, keepdims=True).clip(1e-12)
    centers = _weighted_kmeans(points, doubts[candidates] + 1e-6, count, np.random.default_rng(seed))
    distances = _square_distances(centers, points)
    chosen = list[int]()
    for row in distances:
        nearest = int(row.argmin())
        chosen.append(nearest)
        distances[:, nearest] = np.inf  # each image once
    return [*map(int, candidates[sorted(chosen)])]  # the most uncertain first


def _weighted_kmeans(
    points: NDArray[Any], weights: NDArray[Any], count: int, rng: np.random.Generator
) -> NDArray[np.floating[Any]]:
    """Return the centers (count, F) of k-means of points (N, F), which starts as k-means++ does."""
    centers = points[rng.choice(len(points), p=weights / weights.sum())][None]
    nearest = _square_distances(centers, points)[0]
    while len(centers) < count:
        chances = weights * nearest + 1e-12
        new = points[rng.choice(len(points), p=chances / chances.sum())][None]
        centers, nearest = np.concatenate([centers, new]), np.minimum(nearest, _square_distances(new, points)[0])
    for _ in range(_KMEANS_STEPS):
        members = np.eye(count)[_square_distances(centers, points).argmin(axis=0)] * weights[:, None]  # (N, count)
        totals = members.sum(axis=0)[:, None]
        centers = np.where(totals > 0, members.T @ points / totals.clip(1e-12), centers)
    return np.asarray(centers)


def _square_distances(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return the squared distances (M, N) of points (M, F) and (N, F)."""
    products = -2 * first @ second.T + (first**2).sum(1)[:, None] + (second**2).sum(1)
    return np.asarray(products.clip(0))


def choose_badge(features: NDArray[Any], probabilities: NDArray[Any], count: int, seed: int) -> list[int]:
    """Choose by k-means++ among the gradients of the head, if the most likely class is right (BADGE, arXiv:1906.03671).

    The gradient of an image is the outer product of its errors and its features: products of gradients are products of
    these two, so that no gradient is formed. See METHODS.
    """
    rng = np.random.default_rng(seed)
    errors = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    squares = (errors**2).sum(1) * (features**2).sum(1)
    chosen = [int(squares.argmax())]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        products = (errors @ errors[last]) * (features @ features[last])
        nearest = np.minimum(nearest, (squares + squares[last] - 2 * products).clip(0))
        chances = nearest + 1e-12 * squares.max() + 1e-30
        chances[chosen] = 0
        chosen.append(int(rng.choice(len(features), p=chances / chances.sum())))
    return chosen


# Functions of features (N, F) and probabilities (N, C) that return `count` (at most N) different indices, the one to
# label first in front, and a seed of what they draw.
METHODS: dict[str, Callable[[NDArray[Any], NDArray[Any], int, int], Sequence[int]]] = {
    "random": choose_random,
    "margin": choose_margin,
    "margin_kmeans": choose_margin_kmeans,
    "badge": choose_badge,
}
