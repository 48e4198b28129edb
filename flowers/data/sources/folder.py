"""Find and check the images of a folder with one subfolder per class."""

import glob
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler

from flowers.data.images import ImageCheck, check_images
from flowers.data.samplers import EpochSampler, SampleKeys
from flowers.data.splits import ImageRecord, SplitRecord
from flowers.runtime.text import listed_names, one_line
from flowers.settings.schema.values import OnCorrupt

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
        log.warning("ignoring folders without a file in %s: %s", one_line(root), listed_names(empty))
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
            f"{one_line(root)} has the folders {listed_names(folders)}: expected train, val and optionally test (or "
            "usual names such as training, valid, validation, dev, testing), each once, or only classes: rename or "
            "move some"
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
            log.warning("ignoring links to folders inside a folder of images: %s", listed_names(links))
    return files


def _unreadable_folder(error: OSError, folder: Path) -> ValueError:
    return ValueError(
        f"the folder {one_line(error.filename or folder)} cannot be read ({error.strerror or error}): "
        "make it readable, or move it away"
    )


def _is_candidate(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED_NAMES


def _normalize_label(label: str) -> str:
    # macOS may return decomposed letters: a folder must be the same class on every machine.
    return unicodedata.normalize("NFC", label)


def _check_classes(root: Path, found: list[ImageFile]) -> None:
    labels = sorted({file.label for file in found})
    if len(labels) < 2:
        raise ValueError(
            f"{one_line(root)} has images of {len(labels)} class(es) [{listed_names(labels)}]: "
            "expected one subfolder per class, at least two"
        )
    trained = {file.label for file in found if file.split in (None, "train")}
    if missing := sorted(set(labels) - trained):
        raise ValueError(
            f"the train folder of {one_line(root)} lacks the class(es) {listed_names(missing)}: "
            "expected all classes that val and test have"
        )


class FolderSource:
    """The images of a folder, checked on first use; `source / "rose/1.jpg"` is the path of an image.

    Args:
        path: Folder with one subfolder per class.
        create: Called with `path` to create the folder, such as by a download; None if it exists.
        on_corrupt: For files that cannot be read: "error" lists them and stops, "skip" lists and ignores them.

    Raises:
        ValueError: For an invalid argument; on first use, for a folder or files that cannot be used.
    """

    is_sequential = False

    def __init__(
        self, path: str | Path, create: Callable[[Path], None] | None = None, on_corrupt: OnCorrupt = "error"
    ) -> None:
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"data.on_corrupt={on_corrupt}: expected error or skip")
        self.path, self.create, self.on_corrupt = Path(path).resolve(), create, on_corrupt

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
        bad = [f"  {one_line(path)}: {reason}" for path, reason in reasons.items()]
        if bad and self.on_corrupt == "error":
            raise ValueError(
                "\n".join([f"{len(bad)} of {len(self._files)} files in {one_line(self)} cannot be read:", *bad])
                + "\nrepair or remove them, or ignore them with on_corrupt=skip (data.on_corrupt=skip in training)"
            )
        if bad:
            log.warning("\n".join([f"ignoring {len(bad)} files that cannot be read:", *bad]))
        return [
            ImageRecord(file.path, file.label, checks[file.path].sha256, checks[file.path].phash, file.split or "")
            for file in self._files
            if file.path not in reasons
        ]

    @property
    def gray_peaks(self) -> list[int]:
        """The largest value of each grayscale image of more than 8 bits."""
        return [self._checks[image.path].gray_peak for image in self.images if self._checks[image.path].gray_peak]

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
        return check_images(self.path, [file.path for file in self._files])

    @cached_property
    def _files(self) -> list[ImageFile]:
        if self.create is not None:
            self.create(self.path)
        return find_images(self.path)
