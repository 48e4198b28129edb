"""Choose groups of images so that each class gets its number of images in a split."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_SUMS = 2**24  # groups times images of a class, up to which the best sum is searched: 128 MiB
_UNREACHED = 2**30

Labels = Mapping[str, Mapping[str, int]]  # of each group, the number of images per class


def fill_quota(order: Sequence[str], labels: Labels, quota: Mapping[str, int], least: int, kept: int) -> set[str]:
    """Return groups with as many images of each class as its quota, or as near to it as the groups allow.

    They are the first groups that fit into what is left of the quota of each of their classes. Where this leaves a
    class short, of the groups that have this class alone those are taken whose sum is nearest to its quota.

    Args:
        order: The groups that may be chosen.
        labels: The images per class of each group.
        quota: The number of images of each class.
        least: Groups of each class to choose at least, if they can be chosen: 0 or 1.
        kept: Groups of each class to leave at least.
    """
    numbers = Counter(label for group in order for label in labels[group])
    remaining, left = Counter(quota), Counter({label: number - kept for label, number in numbers.items()})
    chosen = set()
    for group in order:
        counts = labels[group]
        if all(remaining[label] >= count and left[label] > 0 for label, count in counts.items()):
            chosen.add(group)
            remaining.subtract(counts)
            left.subtract(dict.fromkeys(counts, 1))
    for label in sorted(label for label, number in remaining.items() if number > 0):
        own = [group for group in order if [*labels[group]] == [label]]
        before = {group for group in own if group in chosen}
        wanted, most = remaining[label] + sum(labels[group][label] for group in before), left[label] + len(before)
        if most > 0 and own and len(own) * wanted <= _MOST_SUMS:
            sizes = [labels[group][label] for group in own]
            is_first = all(label not in labels[group] for group in chosen - before)
            best = _nearest_sum(sizes, wanted, least if is_first else 0, most)
            chosen = (chosen - before) | {own[index] for index in best}
    return chosen


def _nearest_sum(sizes: Sequence[int], wanted: int, least: int, most: int) -> list[int]:
    """Return `least` to `most` positions whose sum of sizes is nearest to `wanted`; the smaller of two such sums."""
    limit = 2 * wanted + min(sizes)  # a larger sum is further from `wanted` than the smallest size alone
    fewest = np.full(limit + 1, _UNREACHED)  # of positions, for each sum
    fewest[0] = 0
    steps: list[NDArray[np.int64]] = []
    for size in sizes:
        steps.append(fewest)
        fewest = fewest.copy()
        if size <= limit:
            fewest[size:] = np.minimum(fewest[size:], steps[-1][: limit + 1 - size] + 1)
    sums = np.flatnonzero((fewest >= least) & (fewest <= most))
    total = int(min(sums, key=lambda each: (abs(int(each) - wanted), each), default=0))
    chosen = []
    for index in reversed(range(len(sizes))):
        if fewest[total] != steps[index][total]:
            chosen.append(index)
            total -= sizes[index]
        fewest = steps[index]
    return chosen


def deal_folds(order: Sequence[str], labels: Labels, folds: int) -> dict[str, int]:
    """Return the fold of each group: the one with the fewest images of its classes so far.

    Then groups move from full folds to empty ones. If that leaves a class uneven, the largest groups are dealt first.
    """
    fold_of = _deal(order, labels, folds)
    span = _even_out(fold_of, labels, folds)
    if span > 1:
        by_size = _deal(sorted(order, key=lambda group: -sum(labels[group].values())), labels, folds)
        if _even_out(by_size, labels, folds) < span:
            return by_size
    return fold_of


def _deal(order: Sequence[str], labels: Labels, folds: int) -> dict[str, int]:
    dealt: list[Counter[str]] = [Counter() for _ in range(folds)]
    fold_of = {}
    for group in order:
        fold_of[group] = min(range(folds), key=lambda fold: (sum(dealt[fold][label] for label in labels[group]), fold))
        dealt[fold_of[group]].update(labels[group])
    return fold_of


def _even_out(fold_of: dict[str, int], labels: Labels, folds: int) -> int:
    """Move groups of one class to folds that have less of it; return the largest difference of two folds of a class."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for group in fold_of:
        for label in labels[group]:
            groups[label].append(group)
    widest = 0
    for label, own in groups.items():
        counts = [0] * folds
        for group in own:
            counts[fold_of[group]] += labels[group][label]
        while (span := max(counts) - min(counts)) > 1:
            full, empty = counts.index(max(counts)), counts.index(min(counts))
            movable = [group for group in own if fold_of[group] == full and [*labels[group]] == [label]]
            sizes = {group: labels[group][label] for group in movable if labels[group][label] < span}
            if not sizes:
                break
            moved = min(sizes, key=lambda group: abs(2 * sizes[group] - span))
            fold_of[moved] = empty
            counts[full] -= sizes[moved]
            counts[empty] += sizes[moved]
        widest = max(widest, span)
    return widest
