"""Which images of a source are train, val and test: as a file says, as the source has them, or by a new split."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flowers.data.corrections import Corrections, load_corrections
from flowers.data.images import ImageRoot, pixel_limit, read_image
from flowers.data.own_groups import join_groups, pattern_groups
from flowers.data.sources.source import ImageSource
from flowers.data.splits import (
    OWN_GROUP,
    ImageRecord,
    SplitRecord,
    assign_splits,
    check_split,
    check_split_settings,
    describe_shortages,
    find_label_conflicts,
    find_leaks,
    is_own,
    load_split,
)
from flowers.runtime.text import listed_names, one_line
from flowers.settings.schema.values import GROUP_PATTERN

log = logging.getLogger(__name__)

_WAYS_OUT = (
    "set data.group_by=exact to keep only identical files together, data.group_by=none to split them, too, or a "
    "smaller data.duplicate_threshold to call fewer images near duplicates; or add images of the class"
)
_OWN_WAYS_OUT = (
    "set data.columns.group=false, or another data.group_by, to split them; or add images of the class of other groups"
)


@dataclass(frozen=True)
class Splitter:
    """How images are split, after their labels are corrected. Its files are read and checked at once.

    Attributes:
        val_fraction: See `assign_splits`; likewise the following ones.
        test_fraction: Share of the images in test, from 0 to below 1.
        folds: Number of cross-validation folds, at least 2; 0 for a single split by `val_fraction`.
        fold: The fold that is val, from 0 to `folds` - 1.
        split_seed: Seed of the split.
        split_file: A split.csv with the paths of the source, used in place of a new split.
        corrections: A corrections.csv: photos to relabel or to leave out, by the digest of their contents.
        group_by: What is not split: "auto" near duplicates, "exact" identical files alone, "none" nothing; `re:` and a
            regular expression: near duplicates, and photos in whose paths its groups match the same. What else it is
            names a column of a table, whose groups the source knows, and near duplicates.
        duplicate_threshold: The largest difference of near duplicates; see `find_duplicates`.

    Raises:
        ValueError: A setting is wrong, or a file cannot be used.
    """

    val_fraction: float = 0.2
    test_fraction: float = 0.0
    folds: int = 0
    fold: int = 0
    split_seed: int = 0
    split_file: str | Path | None = None
    corrections: str | Path | None = None
    group_by: str = "auto"
    duplicate_threshold: float = 0.6

    def __post_init__(self) -> None:
        check_split_settings(self.val_fraction, self.test_fraction, self.folds, self.fold)
        _ = self.label_corrections, self._stored

    @cached_property
    def label_corrections(self) -> Corrections:
        """The corrections of labels that the file `corrections` holds."""
        return Corrections() if self.corrections is None else load_corrections(self.corrections)

    @cached_property
    def _stored(self) -> list[SplitRecord] | None:
        return None if self.split_file is None else load_split(self.split_file)

    def corrected(self, source: ImageSource) -> list[ImageRecord]:
        """Return all images of a source, with their corrected labels.

        Raises:
            ValueError: The corrections are not for these images.
        """
        if self.label_corrections.lines:
            self.label_corrections.check(source.images, str(source))
        return self.label_corrections.apply(source.images)

    def split(self, source: ImageSource) -> list[SplitRecord]:
        """Return the images of a source that are used, with their split.

        Raises:
            ValueError: The images are not those of `split_file`, or too few to be split.
        """
        if self._stored is None and self.group_by.startswith(GROUP_PATTERN):
            pattern_groups(source.paths, self.group_by)  # a wrong one is refused before images are read
        images = self.corrected(source)
        if self._stored is not None:
            return self.label_corrections.apply(check_split(self._stored, source.images, str(self.split_file)))
        if any(image.group for image in images):
            return [SplitRecord(i.path, i.label, i.split, i.group, i.sha256) for i in images]
        copies, images = self._group(images, source)
        ignored = set()
        for same in find_label_conflicts(images, copies):
            paths = [image.path for image in same]
            log.warning("ignoring an image that has several classes: %s", listed_names(paths))
            ignored.update(paths)
        images = [image for image in images if image.path not in ignored]
        if empty := sorted({*source.classes} - {image.label for image in images}):
            raise ValueError(
                f"no usable image of the class(es) {listed_names(empty)}: repair one, or remove the folder"
            )
        if any(image.split for image in images):
            return self._split_of_source(images)
        return self._assign(images, self.test_fraction)

    def _assign(self, images: Sequence[ImageRecord], test_fraction: float) -> list[SplitRecord]:
        """Return a new split of images with their groups; name a class whose groups are too large for it."""
        records = assign_splits(images, self.val_fraction, test_fraction, self.folds, self.fold, self.split_seed)
        if lines := describe_shortages(records, 1 / self.folds if self.folds else self.val_fraction):
            more = f" (and {len(lines) - 1} more classes)" if len(lines) > 1 else ""
            ways_out = _OWN_WAYS_OUT if any(is_own(image.group) for image in images) else _WAYS_OUT
            log.warning("%s%s: %s", lines[0], more, ways_out)
        return records

    def _split_of_source(self, images: Sequence[ImageRecord]) -> list[SplitRecord]:
        """Return the split that images have. Where none is in val, val is drawn from train."""
        split_of = {image.path: image.split for image in images}
        if "val" not in split_of.values():
            log.info("no folder is val: drawing it from train")
            drawn = self._assign([image for image in images if image.split == "train"], 0.0)
            split_of |= {record.path: record.split for record in drawn}
        return _warn_of_leaks([SplitRecord(i.path, i.label, split_of[i.path], i.group, i.sha256) for i in images])

    def grouped(self, images: Sequence[ImageRecord], root: ImageRoot) -> list[ImageRecord]:
        """Return images that are at `root` with their groups."""
        return self._group(images, root)[1]

    def _group(self, images: Sequence[ImageRecord], root: ImageRoot) -> tuple[list[str], list[ImageRecord]]:
        """Return what the copies of one photo share, for each image, and the images with their groups."""
        digests = [image.sha256 for image in images]
        copies, groups = digests, digests
        if self.group_by not in ("exact", "none"):
            # Not above: it imports torch, which takes seconds, also where nothing is split.
            from flowers.data.near_duplicates import find_duplicates

            hashes, limit = [image.phash for image in images], pixel_limit(root)
            found = find_duplicates(
                digests, hashes, lambda index: read_image(root / images[index].path, limit), self.duplicate_threshold
            )
            copies, groups = (_smallest_digests(numbers, digests) for numbers in found)
        elif self.group_by == "none":
            groups = _numbered(digests)
        names = [group[:16] for group in groups]
        own = [image.own_group for image in images]
        if self.group_by.startswith(GROUP_PATTERN):
            names = join_groups(names, pattern_groups([image.path for image in images], self.group_by))
        if any(own):
            names = join_groups(names, own)
        if any(own) or self.group_by.startswith(GROUP_PATTERN):
            names = [f"{OWN_GROUP}{name}" for name in names]
        return copies, [image._replace(group=name) for image, name in zip(images, names, strict=True)]


def _smallest_digests(numbers: Sequence[int], digests: Sequence[str]) -> list[str]:
    """Return the smallest digest of the images with the same number, for each image."""
    smallest: dict[int, str] = {}
    for number, digest in zip(numbers, digests, strict=True):
        smallest[number] = min(smallest.get(number, digest), digest)
    return [smallest[number] for number in numbers]


def _numbered(digests: Sequence[str]) -> list[str]:
    """Return the digests, and others for those that were there before."""
    seen = Counter[str]()
    names = []
    for digest in digests:
        names.append(hashlib.sha256(f"{digest} {seen[digest]}".encode()).hexdigest() if seen[digest] else digest)
        seen[digest] += 1
    return names


def _warn_of_leaks(records: list[SplitRecord]) -> list[SplitRecord]:
    if leaks := find_leaks(records):
        example = " and ".join(one_line(record.path) for record in leaks[0][:2])
        kind = "your own" if is_own(leaks[0][0].group) else "duplicates"
        log.warning("%d group(s) of %s are in several splits, such as %s", len(leaks), kind, example)
    return records
