"""Which images of a source are train, val and test: as a file says, as the source has them, or by a new split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flowers.data.corrections import Corrections, load_corrections
from flowers.data.sources.source import ImageSource
from flowers.data.splits import (
    ImageRecord,
    SplitRecord,
    assign_splits,
    check_split,
    check_split_settings,
    find_label_conflicts,
    find_leaks,
    group_near_duplicates,
    load_split,
)
from flowers.runtime.text import listed_names, one_line

log = logging.getLogger(__name__)


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
        images = self.corrected(source)
        if self._stored is not None:
            return self.label_corrections.apply(check_split(self._stored, source.images, str(self.split_file)))
        if any(image.group for image in images):
            return [SplitRecord(i.path, i.label, i.split, i.group, i.sha256) for i in images]
        ignored = set()
        for copies in find_label_conflicts(images):
            paths = [image.path for image in copies]
            log.warning("ignoring an image that has several classes: %s", listed_names(paths))
            ignored.update(paths)
        images = [image for image in images if image.path not in ignored]
        if empty := sorted({*source.classes} - {image.label for image in images}):
            raise ValueError(
                f"no usable image of the class(es) {listed_names(empty)}: repair one, or remove the folder"
            )
        if any(image.split for image in images):
            return self._split_of_source(images)
        return assign_splits(images, self.val_fraction, self.test_fraction, self.folds, self.fold, self.split_seed)

    def _split_of_source(self, images: Sequence[ImageRecord]) -> list[SplitRecord]:
        """Return the split that images have. Where none is in val, val is drawn from train."""
        group_of = group_near_duplicates(images)
        split_of = {image.path: image.split for image in images}
        if "val" not in split_of.values():
            log.info("no folder is val: drawing it from train")
            train = [image for image in images if image.split == "train"]
            drawn = assign_splits(train, self.val_fraction, 0.0, self.folds, self.fold, self.split_seed)
            split_of |= {record.path: record.split for record in drawn}
        return _warn_of_leaks(
            [SplitRecord(i.path, i.label, split_of[i.path], group_of[i.path], i.sha256) for i in images]
        )


def _warn_of_leaks(records: list[SplitRecord]) -> list[SplitRecord]:
    if leaks := find_leaks(records):
        example = " and ".join(one_line(record.path) for record in leaks[0][:2])
        log.warning("%d group(s) of duplicates are in several splits, such as %s", len(leaks), example)
    return records
