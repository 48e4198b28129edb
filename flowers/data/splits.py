"""Assign images to train, val and test: stratified by class, with near duplicates in one split; split.csv."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from flowers.runtime.files import atomic_write_text
from flowers.runtime.text import one_line, read_csv, to_csv
from flowers.settings.schema.run_files import CLASSES_TEXT, are_classes

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

_MAX_PATH, _MAX_GROUP = 4096, 64  # characters

_COLUMNS = ("path", "class", "split", "group", "sha256")  # of split.csv


class ImageRecord(NamedTuple):
    """An image that can be read.

    Attributes:
        path: Path below the root.
        label: Class name.
        sha256: SHA-256 of the file, hexadecimal.
        phash: Perceptual hash of the image, hexadecimal.
        split: train, val or test, if the source is split; or else empty.
        group: Shared by near duplicates, if the source knows them; or else empty.
    """

    path: str
    label: str
    sha256: str
    phash: str
    split: str = ""
    group: str = ""


class SplitRecord(NamedTuple):
    """A line of split.csv.

    Attributes:
        path: Path below the root.
        label: Class name.
        split: train, val or test.
        group: Shared by near duplicates, which are in the same split.
        sha256: SHA-256 of the file, hexadecimal.
    """

    path: str
    label: str
    split: str
    group: str
    sha256: str


def check_split_settings(val_fraction: float, test_fraction: float, folds: int, fold: int) -> None:
    """Raise ValueError for settings from which `assign_splits` cannot make a split of any images."""
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"data.{name}={fraction}: expected a number from 0 to below 1")
    if val_fraction + test_fraction >= 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} data.test_fraction={test_fraction}: "
            "expected a sum below 1, to leave images for training"
        )
    if folds and folds < 2:
        raise ValueError(f"data.folds={folds}: expected 0 for a single split, or at least 2")
    if folds and not 0 <= fold < folds:
        raise ValueError(f"data.fold={fold}: expected a number from 0 to {folds - 1} (data.folds={folds})")


def assign_splits(
    images: Sequence[ImageRecord],
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    folds: int = 0,
    fold: int = 0,
    seed: int = 0,
) -> list[SplitRecord]:
    """Split `images` by their contents and `seed` alone: paths and order do not matter.

    Groups of near duplicates are assigned as a whole, in the order of a keyed hash. `test` is filled first and does not
    depend on the folds.

    Args:
        images: The images; each class needs at least two, and at least `folds`.
        val_fraction: Share of each class in val, from 0 to below 1; unused with `folds`.
        test_fraction: Share of each class in test, from 0 to below 1.
        folds: Number of cross-validation folds, at least 2; 0 for none.
        fold: The fold that is val, from 0 to `folds` - 1.
        seed: Seed of the order of the groups.

    Returns:
        A record for each image, sorted by path.

    Raises:
        ValueError: For invalid settings, or a class with too few images.
    """
    check_split_settings(val_fraction, test_fraction, folds, fold)
    total = Counter(image.label for image in images)
    rarest, count = min(total.items(), key=lambda item: item[1])
    if count < (needed := max(2, folds)):
        raise ValueError(f"class {one_line(rarest)} has {count} usable image(s): expected at least {needed} to split")
    group_of = group_near_duplicates(images)
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)  # of each group, the number of images per class
    for image in images:
        labels[group_of[image.path]][image.label] += 1
    order = _hash_order(labels, seed)

    test = _fill_quota(order, labels, {label: round(count * test_fraction) for label, count in total.items()})
    rest = [group for group in order if group not in test]
    if folds:
        val = {group for group, number in _deal_folds(rest, labels, folds).items() if number == fold}
    else:
        val = _fill_quota(rest, labels, {label: round(count * val_fraction) for label, count in total.items()})
    split_of = dict.fromkeys(order, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return sorted(SplitRecord(i.path, i.label, split_of[group_of[i.path]], group_of[i.path], i.sha256) for i in images)


def assign_folds(records: Sequence[SplitRecord], folds: int, seed: int = 0) -> list[int]:
    """Return the fold of each record, from 0 to `folds` - 1. Near duplicates are in the same fold.

    They are the folds of `assign_splits`, in which each fold in turn is val, if no record is in test.

    Raises:
        ValueError: A class has fewer images than there are folds.
    """
    rarest, count = min(Counter(record.label for record in records).items(), key=lambda item: item[1])
    if count < folds:
        raise ValueError(f"class {one_line(rarest)} has {count} usable image(s): expected at least {folds}, one a fold")
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        labels[record.group][record.label] += 1
    fold_of = _deal_folds(_hash_order(labels, seed), labels, folds)
    return [fold_of[record.group] for record in records]


def _hash_order(groups: Iterable[str], seed: int) -> list[str]:
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())


def _fill_quota(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], quota: Mapping[str, int]) -> set[str]:
    """Return the first groups that fit into the remaining quota of each of their classes."""
    remaining = Counter(quota)
    chosen = set()
    for group in order:
        if all(remaining[label] >= count for label, count in labels[group].items()):
            chosen.add(group)
            for label, count in labels[group].items():
                remaining[label] -= count
    return chosen


def _deal_folds(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], folds: int) -> dict[str, int]:
    """Return the fold of each group: the one with the fewest images of its classes so far."""
    dealt: list[Counter[str]] = [Counter() for _ in range(folds)]
    fold_of = {}
    for group in order:
        fold_of[group] = min(range(folds), key=lambda fold: (sum(dealt[fold][label] for label in labels[group]), fold))
        dealt[fold_of[group]].update(labels[group])
    return fold_of


def find_label_conflicts(images: Iterable[ImageRecord]) -> list[list[ImageRecord]]:
    """Return the sets of byte-identical images that are in several classes."""
    copies = defaultdict(list)
    for image in images:
        copies[image.sha256].append(image)
    return [same for same in copies.values() if len({image.label for image in same}) > 1]


def find_leaks(records: Iterable[SplitRecord]) -> list[list[SplitRecord]]:
    """Return the groups with images in more than one split. A split of `assign_splits` has none."""
    members = defaultdict(list)
    for record in records:
        members[record.group].append(record)
    return [group for group in members.values() if len({record.split for record in group}) > 1]


def check_split(records: Sequence[SplitRecord], images: Sequence[ImageRecord], source: str) -> list[SplitRecord]:
    """Return `records` if all of them are among `images`, unchanged.

    Args:
        records: The records of a split file.
        images: The images that exist now.
        source: Path of the split file, for messages.

    Raises:
        ValueError: If images are missing or have changed.
    """
    digests = {image.path: image.sha256 for image in images}
    wrong = [record.path for record in records if digests.get(record.path) != record.sha256]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the {len(records)} images of {source} are missing or have changed, "
            f"such as {one_line(wrong[0])}: expected the images that the split was made of"
        )
    if len(images) > len(records):
        log.info("%d images are not in %s and are not used", len(images) - len(records), source)
    return list(records)


def split_to_csv(records: Iterable[SplitRecord]) -> str:
    """Return the text of split.csv."""
    return _split_csv(tuple(records))


@lru_cache(maxsize=1)  # a run writes it and needs its digest, and so do the next jobs of a multirun
def _split_csv(records: tuple[SplitRecord, ...]) -> str:
    return to_csv([_COLUMNS, *records])


def split_sha256(records: Iterable[SplitRecord]) -> str:
    """Return the SHA-256 of split.csv, as `sha256sum split.csv` prints it."""
    return hashlib.sha256(split_to_csv(records).encode(errors="surrogateescape")).hexdigest()


def save_split(records: Iterable[SplitRecord], path: Path) -> None:
    """Write split.csv."""
    atomic_write_text(path, split_to_csv(records))


def load_split(path: str | Path) -> list[SplitRecord]:
    """Return the records of a split.csv.

    Raises:
        ValueError: If the file is missing, or has other columns, other splits, incomplete lines, a path twice, or what
            is no SHA-256.
    """
    name = one_line(path)
    try:
        header, *rows = read_csv(path) or [[]]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{name} cannot be read ({reason}): expected a split.csv (data.split_file)") from error
    if missing := [column for column in _COLUMNS if column not in header]:
        raise ValueError(f"{name} is not a split file: no column {missing[0]}: expected {', '.join(_COLUMNS)}")
    positions = [header.index(column) for column in _COLUMNS]
    is_complete = bool(rows) and all(len(row) == len(header) for row in rows)
    records = [SplitRecord(*(row[position] for position in positions)) for row in rows] if is_complete else []
    if not records or len({record.path for record in records}) < len(records):
        raise ValueError(f"{name} is not a split file: expected one complete line for each image, and no path twice")
    if wrong := {record.split for record in records} - set(SPLITS):
        raise ValueError(f"{name} has the split(s) {one_line(', '.join(sorted(wrong)))}: expected {', '.join(SPLITS)}")
    for record in records:
        if not (record.path and len(record.path) <= _MAX_PATH and len(record.group) <= _MAX_GROUP):
            found = one_line(record.path[:100]) or "an empty path"
            raise ValueError(f"{name} is not a split file: {found}: expected a path of at most {_MAX_PATH} characters")
    if (classes := {record.label for record in records}) and not are_classes([*classes]):
        raise ValueError(f"{name} is not a split file: expected {CLASSES_TEXT}")
    if damaged := next((record for record in records if not is_sha256(record.sha256)), None):
        raise ValueError(f"{name} has no SHA-256 for {one_line(damaged.path)}: expected 64 hexadecimal digits")
    return records


def is_sha256(text: object) -> bool:
    """Return whether `text` is a SHA-256 as this project writes it: 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def group_near_duplicates(images: Sequence[ImageRecord]) -> dict[str, str]:
    """Return the group of each path: the first 16 digits of the smallest SHA-256 among its near duplicates."""
    # Not above: it imports torch, which takes seconds, and the workers of `flowers.pack` import this module.
    from flowers.data.near_duplicates import group_hashes

    numbers = group_hashes([image.phash for image in images])
    smallest: dict[int, str] = {}
    for number, image in zip(numbers, images, strict=True):
        smallest[number] = min(smallest.get(number, image.sha256), image.sha256)
    return {image.path: smallest[number][:16] for number, image in zip(numbers, images, strict=True)}
