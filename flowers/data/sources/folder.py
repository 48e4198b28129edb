"""A folder with one subfolder per class, or the files in it that a table names, as a source of checked images."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler

from flowers.data.images import MAX_PIXELS, ImageCheck, check_images
from flowers.data.samplers import EpochSampler, SampleKeys
from flowers.data.sources.layout import ImageFile, find_images
from flowers.data.splits import ImageRecord, SplitRecord
from flowers.runtime.text import listed_reasons, one_line
from flowers.settings.schema.values import Layout, OnCorrupt

log = logging.getLogger(__name__)


class FolderSource:
    """The images of a folder, checked on first use; `source / "rose/1.jpg"` is the path of an image.

    Args:
        path: Folder with one subfolder per class.
        create: Called with `path` to create the folder, such as by a download; None if it exists.
        on_corrupt: For files that cannot be read: "error" lists them and stops, "skip" lists and ignores them.
        layout: See `find_images`; likewise `merge_similar_names`.
        max_pixels: Files of images with more pixels cannot be read.
        listing: Called with `path` to list the files, such as those of a table; None for `find_images`.

    Raises:
        ValueError: For an invalid argument; on first use, for a folder or files that cannot be used.
    """

    is_sequential = False

    def __init__(
        self,
        path: str | Path,
        create: Callable[[Path], None] | None = None,
        on_corrupt: OnCorrupt = "error",
        layout: Layout | None = "auto",
        merge_similar_names: bool = False,
        max_pixels: int = MAX_PIXELS,
        listing: Callable[[Path], list[ImageFile]] | None = None,
    ) -> None:
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"data.on_corrupt={on_corrupt}: expected error or skip")
        self.path, self.create, self.on_corrupt = Path(path).resolve(), create, on_corrupt
        self.layout, self.merge_similar_names, self.max_pixels = layout, merge_similar_names, max_pixels
        self.listing = listing

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, path: str) -> Path:
        return self.path / path

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers read single files. The lists would take as long to send as the rest of the dataset.
        return {name: value for name, value in self.__dict__.items() if name not in ("images", "_files", "_checks")}

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The images that can be read, with the split of their folder if the folder is split."""
        checks = self._checks
        reasons = {file.path: checks[file.path].reason for file in self._files if checks[file.path].reason}
        if reasons and (self.on_corrupt == "error" or len(reasons) == len(self._files)):
            advice = "repair or remove them, or ignore them with on_corrupt=skip (data.on_corrupt=skip in training)"
            if len(reasons) == len(self._files):
                advice = "expected photos in these formats: convert them, or give another folder"
            count = f"{len(reasons):,} of {len(self._files):,} files in {one_line(self)} cannot be read:"
            raise ValueError("\n".join([count, *listed_reasons(reasons), advice]))
        if reasons:
            log.warning("\n".join([f"ignoring {len(reasons):,} files that cannot be read:", *listed_reasons(reasons)]))
        return [
            ImageRecord(file.path, file.label, check.sha256, check.phash, file.split or "", own_group=file.group)
            for file in self._files
            if not (check := checks[file.path]).reason
        ]

    @property
    def gray_peaks(self) -> list[int]:
        """The largest value of each grayscale image of more than 8 bits."""
        return [self._checks[image.path].gray_peak for image in self.images if self._checks[image.path].gray_peak]

    @property
    def paths(self) -> list[str]:
        """The paths of all files."""
        return [file.path for file in self._files]

    @property
    def classes(self) -> list[str]:
        """The classes that have a file."""
        return sorted({file.label for file in self._files})

    def sort(self, records: list[SplitRecord]) -> list[SplitRecord]:
        """Return the records as they are: any order is as fast."""
        return records

    def training_batches(self, paths: Sequence[str], order: EpochSampler, batch_size: int) -> BatchSampler:
        """Return the images in `order`, in batches."""
        sampler: Any = order  # torch's types expect plain indices
        return BatchSampler(sampler, batch_size, drop_last=False)

    def reading_order(self, paths: Sequence[str], keys: SampleKeys | None) -> Any:
        """Return the keys themselves."""
        return keys

    @cached_property
    def _checks(self) -> dict[str, ImageCheck]:
        return check_images(self.path, [file.path for file in self._files], self.max_pixels)

    @cached_property
    def _files(self) -> list[ImageFile]:
        if self.create is not None:
            self.create(self.path)
        if self.listing is not None:
            return self.listing(self.path)
        return find_images(self.path, self.layout, self.merge_similar_names)
