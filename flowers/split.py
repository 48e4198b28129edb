"""Who is in train, val and test: stratified by class, with no photo and its double on two sides, written down."""

import csv
import hashlib
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flowers import atomic

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


class Photo(NamedTuple):
    """A good photo: its path below the root, its class, and what its bytes and its looks hash to (hexadecimal)."""

    path: str
    label: str
    sha256: str
    phash: str


class Row(NamedTuple):
    """A line of split.csv. Photos of one `group` are the same or nearly so and share a split."""

    path: str
    label: str
    split: str
    group: str
    sha256: str


def contradictions(photos: Iterable[Photo]) -> list[list[Photo]]:
    """Photos that are identical byte for byte and yet filed under several classes, a list for each such photo."""
    copies = defaultdict(list)
    for photo in photos:
        copies[photo.sha256].append(photo)
    return [same for same in copies.values() if len({photo.label for photo in same}) > 1]


def groups(photos: Sequence[Photo]) -> dict[str, str]:
    """The group of each photo by path: the smallest SHA-256 (16 digits) among the photos that are nearly the same."""
    from flowers import duplicates  # torch takes seconds to import: not before the configuration is known to be good

    numbers = duplicates.group([photo.phash for photo in photos])
    smallest: dict[int, str] = {}
    for number, photo in zip(numbers, photos, strict=True):
        smallest[number] = min(smallest.get(number, photo.sha256), photo.sha256)
    return {photo.path: smallest[number][:16] for number, photo in zip(numbers, photos, strict=True)}


def decide(
    photos: Sequence[Photo],
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    folds: int = 0,
    fold: int = 0,
    seed: int = 0,
) -> list[Row]:
    """Splits by the photos' contents and `seed` alone: neither paths nor their order matter.

    Groups are taken in the order of a keyed hash, each whole. `test` is filled first and does not depend on the folds;
    with `folds` > 1, `val` is fold number `fold` of the rest and `val_fraction` is not used.
    """
    _check(photos, val_fraction, test_fraction, folds, fold)
    group_of = groups(photos)
    labels: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for photo in photos:
        counts = labels[group_of[photo.path]]
        counts[photo.label] = counts.get(photo.label, 0) + 1
    order = sorted(labels, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    total = Counter(photo.label for photo in photos)

    test = _fill(order, labels, {label: round(count * test_fraction) for label, count in total.items()})
    rest = [group for group in order if group not in test]
    if folds:
        val = {group for group, number in _deal(rest, labels, folds).items() if number == fold}
    else:
        val = _fill(rest, labels, {label: round(count * val_fraction) for label, count in total.items()})
    split_of = dict.fromkeys(order, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return sorted(Row(p.path, p.label, split_of[group_of[p.path]], group_of[p.path], p.sha256) for p in photos)


def _check(photos: Sequence[Photo], val_fraction: float, test_fraction: float, folds: int, fold: int) -> None:
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}: "
            "wanted two shares of at least 0 that leave something to train on"
        )
    if folds and not (folds > 1 and 0 <= fold < folds):
        raise ValueError(
            f"data.folds={folds} data.fold={fold}: wanted folds=0 (none), or folds > 1 and 0 <= fold < folds"
        )
    rarest, count = min(Counter(photo.label for photo in photos).items(), key=lambda item: item[1])
    if count < max(2, folds):
        raise ValueError(f"class {rarest} has {count} good photo(s): wanted at least {max(2, folds)} to split")


def _fill(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], quota: dict[str, int]) -> set[str]:
    """The first groups that fit into what is left of each class's quota."""
    left = Counter(quota)
    chosen = set()
    for group in order:
        if all(left[label] >= count for label, count in labels[group].items()):
            chosen.add(group)
            for label, count in labels[group].items():
                left[label] -= count
    return chosen


def _deal(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], folds: int) -> dict[str, int]:
    """A fold for each group: the one that has the fewest photos of the group's classes so far."""
    dealt: list[Counter[str]] = [Counter() for _ in range(folds)]
    fold_of = {}
    for group in order:
        fold_of[group] = min(range(folds), key=lambda fold: (sum(dealt[fold][label] for label in labels[group]), fold))
        dealt[fold_of[group]].update(labels[group])
    return fold_of


def crossing(rows: Iterable[Row]) -> list[list[Row]]:
    """Groups with photos in more than one split; those of `decide` have none."""
    members = defaultdict(list)
    for row in rows:
        members[row.group].append(row)
    return [group for group in members.values() if len({row.split for row in group}) > 1]


def to_csv(rows: Iterable[Row]) -> str:
    """The text of split.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "split", "group", "sha256"])
    writer.writerows(rows)
    return text.getvalue()


def digest(rows: Iterable[Row]) -> str:
    """The SHA-256 of split.csv, as `sha256sum split.csv` prints it."""
    return hashlib.sha256(to_csv(rows).encode(errors="surrogateescape")).hexdigest()


def save(rows: Iterable[Row], path: Path) -> None:
    """Writes split.csv."""
    atomic.write_text(path, to_csv(rows))


def load(path: str | Path) -> list[Row]:
    """The rows of a split.csv. Raises ValueError where it is missing or has other columns or split names."""
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = [
                Row(line["path"], line["class"], line["split"], line["group"], line["sha256"])
                for line in csv.DictReader(file)
            ]
    except (OSError, KeyError, csv.Error) as error:
        raise ValueError(f"{path} is no split file ({error}): wanted path, class, split, group, sha256") from error
    if not rows or any(None in row for row in rows) or len({row.path for row in rows}) < len(rows):
        raise ValueError(f"{path} is no split file: wanted a line for each photo, whole, and none twice")
    if wrong := {row.split for row in rows} - set(SPLITS):
        raise ValueError(f"{path} has the split(s) {', '.join(sorted(wrong))}: wanted {', '.join(SPLITS)}")
    return rows


def matched(rows: Sequence[Row], photos: Sequence[Photo], source: str | Path) -> list[Row]:
    """The `rows` of the file `source`. Raises ValueError unless all of theirs are among `photos`, unchanged."""
    digests = {photo.path: photo.sha256 for photo in photos}
    wrong = [row.path for row in rows if digests.get(row.path) != row.sha256]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the {len(rows)} photos of {source} are missing or have changed, such as {wrong[0]}: "
            "wanted the photos that the split was made of"
        )
    if len(photos) > len(rows):
        log.info("%d photos are not in %s and take no part", len(photos) - len(rows), source)
    return list(rows)
