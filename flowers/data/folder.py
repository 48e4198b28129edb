"""Find, check and split the images of a folder with one subfolder per class."""

import glob
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flowers.data.corrections import Corrections
from flowers.data.images import check_images
from flowers.data.splits import (
    ImageRecord,
    SplitRecord,
    assign_splits,
    check_split_settings,
    find_label_conflicts,
    find_leaks,
    group_near_duplicates,
)
from flowers.runtime.text import one_line

log = logging.getLogger(__name__)

_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "icon\r"}  # Windows and macOS create them in folders that they display

_SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


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

    Hidden files and files at the top of `root` are ignored. If the only subfolders are train and val, and perhaps test,
    each of them contains the class folders of that split. Other usual names, such as Training or valid, also work.

    Raises:
        ValueError: If the folder does not exist or has fewer than two classes; if a folder cannot be read; or if some
            folders have names of splits, but not as above.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"no folder of images at {one_line(root)}: expected one subfolder per class (data.root=PATH)")
    folders = _subfolders(root)
    split_of = _folder_split_names(root, folders)
    class_folders: list[tuple[str, str, str | None]] = [(folder, folder, None) for folder in folders]
    if split_of:
        class_folders = [
            (f"{folder}/{label}", label, split_of[folder]) for folder in folders for label in _subfolders(root / folder)
        ]
    found, empty = list[ImageFile](), list[str]()
    for folder, label, split in class_folders:
        files = _files_below(root / folder)
        found += [ImageFile(f"{folder}/{file}", _normalize_label(label), split) for file in files]
        if not files:
            empty.append(folder)
    if empty:
        log.warning("ignoring folders without a file in %s: %s", one_line(root), _listed(empty))
    _check_classes(root, found)
    return sorted(found)


def _folder_split_names(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return the split of each folder; nothing if the folders are classes.

    Raises:
        ValueError: It is not clear which of both they are.
    """
    split_of = {name: _SPLIT_OF_FOLDER[name.lower()] for name in folders if name.lower() in _SPLIT_OF_FOLDER}
    counts = Counter(split_of.values())
    is_all = len(split_of) == len(folders)
    if is_all and {"train", "val"} <= counts.keys() and max(counts.values()) == 1:
        if renamed := [f"{name} as {split}" for name, split in split_of.items() if name != split]:
            log.info("taking the folders of %s for splits: %s", one_line(root), ", ".join(renamed))
        return split_of
    # A single such name may be a class, such as "train" beside "car", or "valid" beside "invalid".
    if (is_all and len(folders) > 1) or ("train" in counts and len(counts) > 1):
        raise ValueError(
            f"{one_line(root)} has the folders {_listed(folders)}: expected train, val and optionally test (or usual "
            "names such as training, valid, validation, dev, testing), each once, or only classes: rename or move some"
        )
    return {}


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
                f"photos={one_line(name)}: no such file: "
                "expected a file, a folder, a glob such as 'a/**/*.jpg' or a list"
            )
        files |= dict.fromkeys(matches)
    return list(files)


def _subfolders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable_folder(error, root) from error


def _files_below(folder: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise _unreadable_folder(error, folder) from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        files += [f"{prefix}{name}" for name in names if _is_candidate(name)]
        if links := [str(Path(parent) / name) for name in folders if (Path(parent) / name).is_symlink()]:
            log.warning("ignoring links to folders inside a folder of images: %s", _listed(links))
    return files


def _unreadable_folder(error: OSError, folder: Path) -> ValueError:
    return ValueError(
        f"the folder {one_line(error.filename or folder)} cannot be read ({error.strerror or error}): "
        "make it readable, or move it away"
    )


def _listed(names: Iterable[str], count: int = 10) -> str:
    """Return names for a message: the first `count`, and how many more there are."""
    shown = [one_line(name) for name in names]
    return ", ".join(shown[:count]) + (f" and {len(shown) - count:,} more" if len(shown) > count else "")


def _is_candidate(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED_NAMES


def _normalize_label(label: str) -> str:
    # macOS may return decomposed letters: a folder must be the same class on every machine.
    return unicodedata.normalize("NFC", label)


def _check_classes(root: Path, found: list[ImageFile]) -> None:
    labels = sorted({file.label for file in found})
    if len(labels) < 2:
        raise ValueError(
            f"{one_line(root)} has images of {len(labels)} class(es) [{_listed(labels)}]: "
            "expected one subfolder per class, at least two"
        )
    trained = {file.label for file in found if file.split in (None, "train")}
    if missing := sorted(set(labels) - trained):
        raise ValueError(
            f"the train folder of {one_line(root)} lacks the class(es) {_listed(missing)}: "
            "expected all classes that val and test have"
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
        corrections: Corrections of the labels, applied before the images are split.

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
        corrections: Corrections | None = None,
    ) -> None:
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"data.on_corrupt={on_corrupt}: expected error or skip")
        check_split_settings(val_fraction, test_fraction, folds, fold)
        self.path, self.source, self.on_corrupt = Path(path).resolve(), source, on_corrupt
        self.split_settings = val_fraction, test_fraction, folds, fold, split_seed
        self.corrections = corrections or Corrections()

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, path: str) -> Path:
        return self.path / path

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers read single files. The lists would take as long to send as the rest of the dataset.
        return {name: value for name, value in self.__dict__.items() if name not in ("images", "records", "_files")}

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The images that can be read."""
        checks = check_images(self.path, [file.path for file in self._files])
        reasons = {file.path: checks[file.path].reason for file in self._files if checks[file.path].reason}
        bad = [f"  {one_line(path)}: {reason}" for path, reason in reasons.items()]
        if bad and self.on_corrupt == "error":
            raise ValueError(
                "\n".join([f"{len(bad)} of {len(self._files)} files in {one_line(self)} cannot be read:", *bad])
                + "\nrepair or remove them, or ignore them with on_corrupt=skip (data.on_corrupt=skip in training)"
            )
        if bad:
            log.warning("\n".join([f"ignoring {len(bad)} files that cannot be read:", *bad]))
        return [
            ImageRecord(file.path, file.label, checks[file.path].sha256, checks[file.path].phash)
            for file in self._files
            if file.path not in reasons
        ]

    @cached_property
    def records(self) -> list[SplitRecord]:
        """The images with their split: from the folder names if it is split, otherwise assigned."""
        corrected = self.corrections.apply(self.images)
        ignored = set()
        for copies in find_label_conflicts(corrected):
            paths = [image.path for image in copies]
            log.warning("ignoring an image that has several classes: %s", _listed(paths))
            ignored.update(paths)
        images = [image for image in corrected if image.path not in ignored]
        if empty := sorted({file.label for file in self._files} - {image.label for image in images}):
            raise ValueError(f"no usable image of the class(es) {_listed(empty)}: repair one, or remove the folder")
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
        example = " and ".join(one_line(record.path) for record in leaks[0][:2])
        log.warning("%d group(s) of duplicates are in several splits, such as %s", len(leaks), example)
    return records
