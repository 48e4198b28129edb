"""Find, check and split the images of a folder with one subfolder per class."""

import glob
import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from flowers.data.images import check_images
from flowers.data.splits import (
    SPLITS,
    ImageRecord,
    SplitRecord,
    assign_splits,
    check_split_settings,
    find_label_conflicts,
    find_leaks,
    group_near_duplicates,
)

log = logging.getLogger(__name__)

_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "icon\r"}  # Windows and macOS create them in folders that they display


class ImageFile(NamedTuple):
    """A file that should be an image.

    Attributes:
        path: Path below the root, with "/" between folders.
        label: Class name.
        split: The split whose folder contains the file; None if the folder is not split.
    """

    path: str
    label: str
    split: str | None


def find_images(root: str | Path) -> list[ImageFile]:
    """List the files in the class folders of `root` and in their subfolders, sorted by path.

    Hidden files and files at the top of `root` are ignored. If the only subfolders are `train`, `val` and perhaps
    `test`, each of them contains the class folders of that split.

    Raises:
        ValueError: If the folder does not exist or has fewer than two classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"no folder of images at {root}: expected one subfolder per class (data.root=PATH)")
    folders = _subfolders(root)
    is_split = {"train", "val"} <= set(folders) <= set(SPLITS)
    if not is_split and "train" in folders and {"val", "test"} & set(folders):
        raise ValueError(
            f"{root} has the folders {', '.join(folders)}: expected train, val and optionally test, or only classes"
        )
    if is_split:
        found = [
            ImageFile(f"{split}/{label}/{file}", _normalize_label(label), split)
            for split in folders
            for label in _subfolders(root / split)
            for file in _files_below(root / split / label)
        ]
    else:
        found = [
            ImageFile(f"{label}/{file}", _normalize_label(label), None)
            for label in folders
            for file in _files_below(root / label)
        ]
    _check_classes(root, found)
    return sorted(found)


def expand_image_paths(photos: str | Sequence[str]) -> list[Path]:
    """Return the files that the setting `photos` names, each once.

    Args:
        photos: A file, a folder (all files below it, except those that `find_images` ignores), a glob, or a list of
            these. The files of a folder or a glob are sorted.

    Raises:
        ValueError: For an empty setting, or a name without a file.
    """
    names = [str(name) for name in (photos if isinstance(photos, (list, tuple)) else [photos])]
    if not photos or not all(names):
        raise ValueError("no images given: set photos= to a file, a folder, a glob or a list of these")
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            matches = [path / file for file in sorted(_files_below(path))]
        elif path.exists():  # also a name with glob characters
            matches = [path]
        else:
            found = sorted(glob.iglob(name, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
            matches = [Path(match) for match in found if not Path(match).is_dir()]
        if not matches:
            raise ValueError(
                f"photos={name}: no such file: expected a file, a folder, a glob such as 'a/**/*.jpg' or a list"
            )
        files |= dict.fromkeys(matches)
    return list(files)


def _subfolders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _files_below(folder: Path) -> list[str]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        files += [(below / name).as_posix() for name in names if _is_candidate(name)]
    return files


def _is_candidate(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED_NAMES


def _normalize_label(label: str) -> str:
    # macOS may return decomposed letters: a folder must be the same class on every machine.
    return unicodedata.normalize("NFC", label)


def _check_classes(root: Path, found: list[ImageFile]) -> None:
    labels = sorted({file.label for file in found})
    if len(labels) < 2:
        raise ValueError(
            f"{root} has images of {len(labels)} class(es) {labels}: expected one subfolder per class, at least two"
        )
    trained = {file.label for file in found if file.split in (None, "train")}
    if missing := sorted(set(labels) - trained):
        raise ValueError(
            f"{root}/train lacks the class(es) {', '.join(missing)}: expected all classes of the other splits"
        )


class ImageFolderSource:
    """The images of a folder, checked and split on first use; `source / "rose/1.jpg"` is the path of an image.

    Args:
        path: Folder with one subfolder per class.
        source: Called with `path` to create the folder; None if it exists.
        on_corrupt: For files that cannot be read: "error" lists them and stops, "skip" lists and ignores them.
        val_fraction: See `assign_splits`; likewise the following arguments.
        test_fraction: Share of the images in test.
        folds: Number of cross-validation folds; 0 for none.
        fold: The fold that is val.
        split_seed: Seed of the split.

    Raises:
        ValueError: For an invalid argument; on first use, for a folder or files that cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        source: Callable[[Path], None] | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        folds: int = 0,
        fold: int = 0,
        split_seed: int = 0,
    ) -> None:
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"data.on_corrupt={on_corrupt}: expected error or skip")
        check_split_settings(val_fraction, test_fraction, folds, fold)
        self.path, self.source, self.on_corrupt = Path(path).resolve(), source, on_corrupt
        self.split_settings = val_fraction, test_fraction, folds, fold, split_seed

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, path: str) -> Path:
        return self.path / path

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The images that can be read."""
        checks = check_images(self.path, [file.path for file in self._files])
        bad = [f"  {file.path}: {checks[file.path].reason}" for file in self._files if checks[file.path].reason]
        if bad and self.on_corrupt == "error":
            raise ValueError(
                "\n".join([f"{len(bad)} of {len(self._files)} files in {self} cannot be read:", *bad])
                + "\nrepair or remove them, or ignore them with on_corrupt=skip (data.on_corrupt=skip in training)"
            )
        if bad:
            log.warning("\n".join([f"ignoring {len(bad)} files that cannot be read:", *bad]))
        return [
            ImageRecord(file.path, file.label, checks[file.path].sha256, checks[file.path].phash)
            for file in self._files
            if not checks[file.path].reason
        ]

    @cached_property
    def records(self) -> list[SplitRecord]:
        """The images with their split: from the folder names if it is split, otherwise assigned."""
        ignored = set()
        for copies in find_label_conflicts(self.images):
            paths = [image.path for image in copies]
            log.warning("ignoring an image that has several classes: %s", ", ".join(paths))
            ignored.update(paths)
        images = [image for image in self.images if image.path not in ignored]
        if empty := sorted({file.label for file in self._files} - {image.label for image in images}):
            raise ValueError(f"no usable image of the class(es) {', '.join(empty)}: repair one, or remove the folder")
        split_of = {file.path: file.split for file in self._files if file.split is not None}
        return _folder_splits(images, split_of) if split_of else assign_splits(images, *self.split_settings)

    @cached_property
    def _files(self) -> list[ImageFile]:
        if self.source is not None:
            self.source(self.path)
        return find_images(self.path)


def _folder_splits(images: Sequence[ImageRecord], split_of: dict[str, str]) -> list[SplitRecord]:
    group_of = group_near_duplicates(images)
    records = [SplitRecord(i.path, i.label, split_of[i.path], group_of[i.path], i.sha256) for i in images]
    if leaks := find_leaks(records):
        example = " and ".join(record.path for record in leaks[0])
        log.warning("%d images have a duplicate in another split, such as %s", len(leaks), example)
    return records
