"""Assign images to train, val and test: stratified by class, with near duplicates in one split; split.csv."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from flowers.data.quotas import deal_folds, fill_quota
from flowers.runtime.files import atomic_write_text
from flowers.runtime.text import one_line, read_csv, to_csv
from flowers.settings.schema.run_files import CLASSES_TEXT, are_classes

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
OWN_GROUP = "own-"  # how the names of groups begin that a table or a pattern of the user joins

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
        group: Shared by near duplicates, if they are known; or else empty.
        own_group: What the user says of the photos that must stay in one split; empty if nothing.
    """

    path: str
    label: str
    sha256: str
    phash: str
    split: str = ""
    group: str = ""
    own_group: str = ""


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
    """Split `images` by their contents, their groups and `seed` alone: paths and order do not matter.

    Groups of near duplicates are assigned as a whole, in the order of a keyed hash. `test` is filled first and does not
    depend on the folds. Each class is in train, and in val if it has at least two groups.

    Args:
        images: The images with their groups; each class needs at least two, and at least `folds`.
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
    labels = _labels_of_groups((image.group, image.label) for image in images)
    order = _hash_order(labels, seed)
    held_out = {label: round(count * test_fraction) for label, count in total.items()}
    test = fill_quota(order, labels, held_out, least=0, kept=2)
    rest = [group for group in order if group not in test]
    if folds:
        val = {group for group, number in deal_folds(rest, labels, folds).items() if number == fold}
    else:
        quota = {label: max(round(count * val_fraction), int(val_fraction > 0)) for label, count in total.items()}
        val = fill_quota(rest, labels, quota, least=1, kept=1)
    split_of = dict.fromkeys(order, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return sorted(SplitRecord(i.path, i.label, split_of[i.group], i.group, i.sha256) for i in images)


def describe_shortages(records: Sequence[SplitRecord], val_fraction: float) -> list[str]:
    """Return a line for each class of which val has fewer or more images than it should, because of a large group."""
    members: defaultdict[str, list[SplitRecord]] = defaultdict(list)
    for record in records:
        members[record.label].append(record)
    lines = []
    for label, own in sorted(members.items()):
        wanted, found = round(len(own) * val_fraction), sum(record.split == "val" for record in own)
        group, size = Counter(record.group for record in own).most_common(1)[0]
        if size > 1 and (abs(found - wanted) > 1 or (wanted and not found)):
            example = next(record.path for record in own if record.group == group)
            place = " are in one group of your own, " if is_own(group) else " are in one group of near duplicates, "
            lines.append(
                f"class {one_line(label)}: val has {found} of its {len(own)} images, not {wanted}: {size} of them "
                f"({size / len(own):.0%}){place}{group} "
                f"(such as {one_line(example)})"
            )
    return lines


def is_own(group: str) -> bool:
    """Return whether a table or a pattern of the user has joined a group."""
    return group.startswith(OWN_GROUP)


def group_summary(records: Iterable[SplitRecord]) -> str:
    """Return how many groups of at least two images there are, and how large they are."""
    counts = Counter(record.group for record in records)
    kind = "Groups of your own, with near duplicates" if any(map(is_own, counts)) else "Near duplicates"
    sizes = sorted(size for size in counts.values() if size > 1)
    if not sizes:
        return f"{kind}: none"
    range_of = f"{sizes[0]:,} to {sizes[-1]:,}" if sizes[-1] > sizes[0] else f"{sizes[0]:,}"
    groups = "one group" if len(sizes) == 1 else f"{len(sizes):,} groups"
    return f"{kind}: {sum(sizes):,} images in {groups} of {range_of}, each in one split"


def assign_folds(records: Sequence[SplitRecord], folds: int, seed: int = 0) -> list[int]:
    """Return the fold of each record, from 0 to `folds` - 1. Near duplicates are in the same fold.

    They are the folds of `assign_splits`, in which each fold in turn is val, if no record is in test.

    Raises:
        ValueError: A class has fewer images than there are folds.
    """
    rarest, count = min(Counter(record.label for record in records).items(), key=lambda item: item[1])
    if count < folds:
        raise ValueError(f"class {one_line(rarest)} has {count} usable image(s): expected at least {folds}, one a fold")
    labels = _labels_of_groups((record.group, record.label) for record in records)
    fold_of = deal_folds(_hash_order(labels, seed), labels, folds)
    return [fold_of[record.group] for record in records]


def _labels_of_groups(pairs: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Return the number of images per class of each group."""
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, label in pairs:
        labels[group][label] += 1
    return labels


def _hash_order(groups: Iterable[str], seed: int) -> list[str]:
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())


def find_label_conflicts(images: Sequence[ImageRecord], copies: Sequence[str]) -> list[list[ImageRecord]]:
    """Return the sets of copies of one photo that are in several classes.

    Args:
        images: The images.
        copies: For each, what the copies of one photo share.
    """
    same = defaultdict(list)
    for image, copy in zip(images, copies, strict=True):
        same[copy].append(image)
    return [each for each in same.values() if len({image.label for image in each}) > 1]


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
