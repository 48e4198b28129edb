"""Find the images of a folder with one sub-folder per class."""

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
    ImageRecord,
    SplitRecord,
    assign_splits,
    find_label_conflicts,
    find_leaks,
    group_near_duplicates,
)

log = logging.getLogger(__name__)


_SPLIT_FOLDERS = ("train", "val", "test")


_IGNORED_NAMES = {
    "thumbs.db",
    "desktop.ini",
    "icon\r",
}  # what Windows and macOS leave in any folder that they have shown


class ImageFile(NamedTuple):
    """A file that should be a photo: its path below the root ("/"-separated), class, and split where that is given."""

    path: str
    label: str
    split: str | None


def find_images(root: str | Path) -> list[ImageFile]:
    """Every file of a folder with one sub-folder a class, sorted by path.

    Files at the top and hidden files are passed over; sub-folders of a class are walked. A folder whose only
    sub-folders are `train`, `val` and perhaps `test` is read as a split that is given.

    Raises ValueError where there is no such folder, or fewer than two classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"no folder of photos at {root}: wanted one with one sub-folder a class (data.root=PATH)")
    folders = _subfolders(root)
    if (
        "train" in folders
        and {"val", "test"} & set(folders)
        and not {"train", "val"} <= set(folders) <= set(_SPLIT_FOLDERS)
    ):
        raise ValueError(f"{root} has the folders {', '.join(folders)}: wanted train, val and perhaps test, or classes")
    if {"train", "val"} <= set(folders) <= set(_SPLIT_FOLDERS):
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


def expand_image_paths(given: str | Sequence[str]) -> list[Path]:
    """The files that a user means by a file, a folder (all in it, but what `find` passes over), a glob, or several.

    Each once, in the order given, those of a folder or a glob sorted. Raises ValueError for one that means no file.
    """
    names = [str(name) for name in (given if isinstance(given, (list, tuple)) else [given])]
    if not given or not all(names):
        raise ValueError("which photos? Give photos=FOLDER, a file, a glob or a list of them")
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            meant = [path / file for file in sorted(_files_below(path))]
        else:
            matches = [name] if path.exists() else sorted(glob.iglob(name, recursive=True))  # noqa: PTH207  # of any root
            meant = [Path(match) for match in matches if not Path(match).is_dir()]
        if not meant:
            raise ValueError(
                f"photos={name}: no file there: wanted a file, a folder, a glob such as 'a/**/*.jpg' or a list"
            )
        files |= dict.fromkeys(meant)
    return list(files)


def _subfolders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _files_below(folder: Path) -> list[str]:
    """Paths below `folder`, "/"-separated."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        files += [(below / name).as_posix() for name in names if _is_candidate(name)]
    return files


def _is_candidate(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED_NAMES


def _normalize_label(label: str) -> str:
    # macOS hands out decomposed letters: the same folder is the same class on every machine.
    return unicodedata.normalize("NFC", label)


def _check_classes(root: Path, found: list[ImageFile]) -> None:
    labels = sorted({item.label for item in found})
    if len(labels) < 2:
        raise ValueError(
            f"{root} holds photos of {len(labels)} class(es) {labels}: wanted one sub-folder a class, at least two"
        )
    trained = {item.label for item in found if item.split in (None, "train")}
    if missing := sorted(set(labels) - trained):
        raise ValueError(f"{root}/train lacks the class(es) {', '.join(missing)} that its other splits have")


class ImageFolderSource:
    """It stands where the folder's path does: `folder / "rose/1.jpg"`.

    Args:
        path: of the folder.
        source: called with `path` to make sure that the photos are there; None where they are.
        on_corrupt: "error" names all photos that cannot be read and stops; "skip" names them and goes on.
        rule: `split.decide`'s arguments.

    Raises ValueError, once asked for photos, for a folder or a photo that cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        source: Callable[[Path], None] | None,
        on_corrupt: Literal["error", "skip"],
        rule: tuple[float, float, int, int, int],
    ) -> None:
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"data.on_corrupt={on_corrupt}: wanted error or skip")
        self.path, self.source, self.on_corrupt, self.rule = Path(path).resolve(), source, on_corrupt, rule

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, path: str) -> Path:
        return self.path / path

    @cached_property
    def photos(self) -> list[ImageRecord]:
        """Those that can be read."""
        verdicts = check_images(self.path, [item.path for item in self._found])
        bad = [f"  {item.path}: {verdicts[item.path].reason}" for item in self._found if verdicts[item.path].reason]
        if bad and self.on_corrupt == "error":
            raise ValueError(
                "\n".join([f"{len(bad)} of {len(self._found)} files in {self} cannot be read:", *bad])
                + "\nmend or remove them, or leave them out with on_corrupt=skip (data.on_corrupt=skip in training)"
            )
        if bad:
            log.warning("\n".join([f"left out, {len(bad)} files that cannot be read:", *bad]))
        return [
            ImageRecord(item.path, item.label, verdicts[item.path].sha256, verdicts[item.path].phash)
            for item in self._found
            if not verdicts[item.path].reason
        ]

    @cached_property
    def rows(self) -> list[SplitRecord]:
        """Every photo that takes part, with its split: the one that the folder gives, else by the rule."""
        left_out = set()
        for same in find_label_conflicts(self.photos):
            log.warning("left out, one photo under several classes: %s", ", ".join(photo.path for photo in same))
            left_out |= {photo.path for photo in same}
        good = [photo for photo in self.photos if photo.path not in left_out]
        if empty := sorted({item.label for item in self._found} - {photo.label for photo in good}):
            raise ValueError(f"no photo is left of the class(es) {', '.join(empty)}: mend some, or remove the folder")
        given = {item.path: item.split for item in self._found if item.split is not None}
        return _given_splits(good, given) if given else assign_splits(good, *self.rule)

    @cached_property
    def _found(self) -> list[ImageFile]:
        if self.source is not None:
            self.source(self.path)
        return find_images(self.path)


def _given_splits(good: Sequence[ImageRecord], split_of: dict[str, str]) -> list[SplitRecord]:
    group_of = group_near_duplicates(good)
    rows = [SplitRecord(p.path, p.label, split_of[p.path], group_of[p.path], p.sha256) for p in good]
    if leaks := find_leaks(rows):
        example = " and ".join(row.path for row in leaks[0])
        log.warning("the given split has %d photos with a double on another side, such as %s", len(leaks), example)
    return rows
