"""Find photos to look at: likely wrong labels, conflicts, duplicates, outliers, and dark, blurred or tiny photos."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, ImageStat
from torch import Tensor

from flowers.data.images import ImageRoot, named_memory_error, pixel_limit, read_image
from flowers.data.splits import ImageRecord, SplitRecord, assign_folds
from flowers.features.linear_probe import cross_validated_logits, principal_components
from flowers.runtime.hardware import available_cores
from flowers.runtime.logging import progress_bar

# Kinds of findings, in the order of the table, with what they mean.
KINDS = {
    "conflict": "near duplicates with different labels",
    "label": "the label is likely wrong",
    "duplicate": "near duplicate of another photo of its class",
    "outlier": "unlike all other photos",
    "dark": "hardly any light",
    "blurred": "no sharp edge",
    "tiny": "less than half the size that the network sees",
}

# Of centered features. On flower_photos (ResNet-50), 11 of 13 pairs above it are near duplicates by their hash too.
NEAR_DUPLICATE_COSINE = 0.9
_DARK, _BLURRED = 0.2, 4.0  # brightness and sharpness of a Preview; all of flower_photos are above them
# On flower_photos (2,048 features) 512 directions find as many wrong labels as all, in a tenth of the time: 95.96 % of
# them are in the first 10 % of the ranking, the mean of three seeds.
_COMPONENTS = 512
_OUTLIER_NEIGHBORS = 10  # as many as cleanlab takes for its score of outliers
_FENCE = 1.5  # interquartile ranges beyond the upper quartile: Tukey's fence
_PREVIEW_SIDE, _PREVIEW_QUALITY = 120, 70  # pixels and JPEG quality: about 4 kB
_SHARPNESS_SIDE = 224  # pixels: the sharpness must not depend on the size of a photo


class Finding(NamedTuple):
    """A reason to look at a photo.

    Attributes:
        kind: One of KINDS.
        photo: Its index.
        suggested: The class that the other photos speak for; None to suggest none.
        score: From 0 to 1, higher for a stronger reason; comparable within a kind.
        neighbors: Photos to compare it with.
        is_likely: Whether it is worth a look. All photos are ranked by their labels; most are fine.
    """

    kind: str
    photo: int
    suggested: int | None
    score: float
    neighbors: tuple[int, ...]
    is_likely: bool = True


class Preview(NamedTuple):
    """What a photo looks like.

    Attributes:
        jpeg: A thumbnail.
        brightness: The luminance that 99 of 100 pixels stay below, from 0 to 1.
        sharpness: Standard deviation of the Laplacian of the photo at a width of about 224 pixels.
        side: Shorter side of the photo in pixels.
    """

    jpeg: bytes
    brightness: float
    sharpness: float
    side: int


@dataclass(frozen=True)
class Audit:
    """The findings about N photos of C classes.

    Args:
        images: The photos.
        classes: The names of the classes.
        findings: Strongest first within each kind, in the order of KINDS.
        overlap: For pairs of classes, the share of their photos that the other photos take for the other class; largest
            first.
        probabilities: Out of fold, (N, C).
    """

    images: Sequence[ImageRecord]
    classes: Sequence[str]
    findings: Sequence[Finding]
    overlap: Sequence[tuple[str, str, float]]
    probabilities: NDArray[np.float64]
    previews: Sequence[Preview] = field(repr=False)

    def likely(self, kind: str) -> list[Finding]:
        """Return the findings of a kind that are worth a look."""
        return [finding for finding in self.findings if finding.kind == kind and finding.is_likely]


def audit_images(
    images: Sequence[ImageRecord],
    classes: Sequence[str],
    features: Tensor,
    previews: Sequence[Preview],
    folds: int,
    seed: int,
    neighbors: int,
    image_size: int,
    is_judged: Sequence[bool] = (),
) -> Audit:
    """Find photos to look at.

    Args:
        images: N photos, with their groups.
        classes: The names of the C classes.
        features: Features (N, F) of a frozen backbone.
        previews: See `preview_images`.
        folds: Number of folds, at least 2. Near duplicates are in the same fold.
        seed: Seed of the folds.
        neighbors: How many of the nearest photos to name beside each.
        image_size: Side of the images that the network sees, in pixels.
        is_judged: Whether somebody has judged the label of each photo: it is then not in question.

    Raises:
        ValueError: A class has fewer photos than there are folds.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([number_of[image.label] for image in images])
    records = [SplitRecord(i.path, i.label, "train", i.group, i.sha256) for i in images]
    fold_of = torch.tensor(assign_folds(records, folds, seed))
    logits, _ = cross_validated_logits(principal_components(features, _COMPONENTS), labels, len(classes), fold_of)
    probabilities = logits.double().softmax(1).numpy()
    similarities, nearest = nearest_neighbors(features, max(neighbors, _OUTLIER_NEIGHBORS))
    groups = duplicate_groups([image.group for image in images], similarities, nearest)
    near = [tuple(row[:neighbors]) for row in nearest.tolist()]
    findings = [
        *_find_conflicts(images, labels, groups, probabilities),
        *_rank_labels(labels, probabilities, groups, near),
        *_find_duplicates(images, labels, groups),
        *_find_outliers(similarities, near),
        *_find_bad_photos(previews, near, image_size),
    ]
    judged = {index for index, is_known in enumerate(is_judged) if is_known}
    left = [finding for finding in findings if finding.photo not in judged]
    return Audit(images, classes, left, class_overlap(labels, probabilities, classes), probabilities, previews)


def nearest_neighbors(features: Tensor, count: int, block: int = 1024) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the cosine similarity and the index of the `count` nearest photos of each, (N, K), nearest first.

    The features are centered first: those of a network with ReLU, above all with random weights, all point one way.

    Args:
        features: (N, F).
        count: How many, K; fewer if there are not that many other photos.
        block: Rows of the matrix of similarities in memory at once.
    """
    directions = torch.nn.functional.normalize(features.float() - features.float().mean(0), dim=1)
    count = min(count, len(features) - 1)
    values, indices = [], []
    for start in range(0, len(directions), block):
        similar = directions[start : start + block] @ directions.T
        rows = torch.arange(len(similar))
        similar[rows, start + rows] = -torch.inf  # not itself
        value, index = similar.topk(count, dim=1)
        values.append(value)
        indices.append(index)
    return torch.cat(values).numpy(), torch.cat(indices).numpy()


def duplicate_groups(
    groups: Sequence[str], similarities: NDArray[np.float32], nearest: NDArray[np.int64]
) -> list[list[int]]:
    """Return the photos of each group of near duplicates, for groups of at least two.

    Args:
        groups: The group of each photo by its perceptual hash.
        similarities: See `nearest_neighbors`.
        nearest: See `nearest_neighbors`.
    """
    parent = list(range(len(groups)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[str, int] = {}
    pairs = [(first.setdefault(group, index), index) for index, group in enumerate(groups)]
    rows, columns = np.nonzero(similarities >= NEAR_DUPLICATE_COSINE)
    pairs += zip(rows.tolist(), nearest[rows, columns].tolist(), strict=True)
    for one, other in pairs:
        parent[root(other)] = root(one)
    members = defaultdict(list)
    for index in range(len(groups)):
        members[root(index)].append(index)
    return [group for group in members.values() if len(group) > 1]


def _find_conflicts(
    images: Sequence[ImageRecord], labels: Tensor, groups: Iterable[Sequence[int]], probabilities: NDArray[np.float64]
) -> list[Finding]:
    """Return a finding for each photo of a group with several labels; identical photos first."""
    findings = []
    for group in groups:
        if len({int(labels[index]) for index in group}) < 2:
            continue
        # The photos of a group share their fold only by hash; the mean is the better guess anyway.
        suggested = int(probabilities[list(group)].mean(0).argmax())
        copies = Counter(images[index].sha256 for index in group)
        for index in group:
            others = tuple(other for other in group if other != index)
            score = 1.0 if copies[images[index].sha256] > 1 else 0.5
            findings.append(Finding("conflict", index, suggested, score, others))
    return sorted(findings, key=lambda finding: (-finding.score, images[finding.photo].sha256))


def _rank_labels(
    labels: Tensor,
    probabilities: NDArray[np.float64],
    groups: Iterable[Sequence[int]],
    near: Sequence[tuple[int, ...]],
) -> list[Finding]:
    """Rank all photos by how likely their label is wrong (Northcutt et al., JAIR 2021, arXiv:1911.00068)."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    numbers = labels.numpy()
    quality = get_label_quality_scores(numbers, probabilities, method="normalized_margin")
    is_likely = find_label_issues(numbers, probabilities, n_jobs=1)
    suggested = probabilities.argmax(1)
    order = np.lexsort((quality, ~is_likely))
    return [
        Finding(
            "label",
            index,
            int(suggested[index]) if suggested[index] != numbers[index] else None,
            float(1 - quality[index]),
            near[index],
            bool(is_likely[index]),
        )
        for index in order.tolist()
    ]


def _find_duplicates(images: Sequence[ImageRecord], labels: Tensor, groups: Iterable[Sequence[int]]) -> list[Finding]:
    """Return a finding for each photo of a group but the first one of its class."""
    findings = []
    for group in groups:
        first: dict[int, int] = {}
        for index in group:
            kept = first.setdefault(int(labels[index]), index)
            if kept != index:
                score = 1.0 if images[kept].sha256 == images[index].sha256 else 0.5
                findings.append(Finding("duplicate", index, None, score, (kept,)))
    return sorted(findings, key=lambda finding: -finding.score)


def _find_outliers(similarities: NDArray[np.float32], near: Sequence[tuple[int, ...]]) -> list[Finding]:
    """Return the photos that are much further from their nearest neighbors than others (Kuan and Mueller, 2022)."""
    distances = 1 - similarities[:, :_OUTLIER_NEIGHBORS].mean(1)
    low, high = np.quantile(distances, (0.25, 0.75))
    far = np.flatnonzero(distances > high + _FENCE * (high - low))
    order = far[np.argsort(-distances[far], kind="stable")]
    return [Finding("outlier", index, None, float(min(1, distances[index])), near[index]) for index in order.tolist()]


def _find_bad_photos(previews: Sequence[Preview], near: Sequence[tuple[int, ...]], image_size: int) -> list[Finding]:
    measures = {
        "dark": [preview.brightness / _DARK for preview in previews],
        "blurred": [preview.sharpness / _BLURRED for preview in previews],
        "tiny": [preview.side / (image_size / 2) for preview in previews],
    }
    return [
        Finding(kind, index, None, 1 - values[index], near[index])
        for kind, values in measures.items()
        for index in sorted((i for i, value in enumerate(values) if value < 1), key=lambda i: values[i])
    ]


def class_overlap(
    labels: Tensor, probabilities: NDArray[np.float64], classes: Sequence[str]
) -> list[tuple[str, str, float]]:
    """Return, for pairs of classes, the share of their photos that are taken for the other class; largest first."""
    predicted, count = probabilities.argmax(1), len(classes)
    confusion = np.bincount(labels.numpy() * count + predicted, minlength=count**2).reshape(count, count)
    sizes = confusion.sum(1)
    pairs = [
        (classes[a], classes[b], float((confusion[a, b] + confusion[b, a]) / (sizes[a] + sizes[b])))
        for a in range(count)
        for b in range(a + 1, count)
        if confusion[a, b] + confusion[b, a]
    ]
    return sorted(pairs, key=lambda pair: -pair[2])


def preview_images(root: ImageRoot, paths: Sequence[str], side: int = _PREVIEW_SIDE) -> list[Preview]:
    """Make thumbnails of photos, `side` x `side` pixels, and measure brightness and sharpness. Read each photo once."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(progress_bar(pool.map(lambda path: _read_preview(root, path, side), paths), "Photos", len(paths)))


def _read_preview(root: ImageRoot, path: str, side: int) -> Preview:
    with named_memory_error(path):
        return preview_image(read_image(root / path, pixel_limit(root)), side)


def preview_image(image: Image.Image, side: int = _PREVIEW_SIDE) -> Preview:
    """Make a thumbnail of a photo, `side` x `side` pixels, and measure its brightness and sharpness."""
    content = io.BytesIO()
    ImageOps.fit(image, (side, side)).save(content, "JPEG", quality=_PREVIEW_QUALITY)
    gray = image.convert("L")
    gray.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE))
    cumulated = np.cumsum(gray.histogram())
    brightness = int(np.searchsorted(cumulated, 0.99 * cumulated[-1])) / 255
    edges = gray.filter(ImageFilter.Kernel((3, 3), (0, -1, 0, -1, 4, -1, 0, -1, 0), scale=1, offset=128))
    return Preview(content.getvalue(), brightness, float(ImageStat.Stat(edges).stddev[0]), min(image.size))
