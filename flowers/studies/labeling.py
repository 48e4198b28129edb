"""Copy photos that a person has labeled into one folder per class."""

import io
import os
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from flowers.data.images import (
    MAX_PIXELS,
    ImageMemoryError,
    image_sha256,
    named_memory_error,
    read_error_reason,
    read_image,
    read_unchanged,
)
from flowers.data.splits import is_sha256
from flowers.runtime.files import atomic_write, check_free_space
from flowers.runtime.text import one_line, read_csv
from flowers.studies.review_page import LABEL_COLUMNS

_MAX_NAME_BYTES = 255
_MAX_STEM_BYTES, _MAX_SUFFIX_BYTES = 150, 10  # of a copy: its temporary name, which is longer, must fit too


def copy_labeled_photos(labels: Path, output: Path, max_pixels: int = MAX_PIXELS) -> Counter[str]:
    """Copy the photos in labels.csv to `output`/CLASS, a folder to train on. Nothing is moved or overwritten.

    All lines, photos and folders are checked before the first copy. A photo that is there already is not copied again.

    Args:
        labels: A labels.csv, which the page of `flowers.suggest` saves.
        output: The folder with one subfolder per class, which may hold photos.
        max_pixels: The most of a photo.

    Returns:
        The number of photos of labels.csv that are in the folder of each class.

    Raises:
        ValueError: The file is no labels.csv, a class is no name of a folder, a photo has two classes, a photo is
            missing, has changed or cannot be read, or a folder cannot be written.
        DiskFullError: The photos do not fit on the disk.
    """
    rows = _read_labels(labels)
    for label in dict.fromkeys(label for _, label, _ in rows):
        _check_writable(output / label)
    targets: dict[Path, str] = {}
    copies = list[tuple[Path, Path, str]]()
    for path, label, sha256 in rows:
        _check_photo(path, sha256, max_pixels)
        target = next(
            target
            for target in (output / label / name for name in _names(path, sha256))
            if targets.get(target, sha256) == sha256 and (_holds(target, sha256) or not os.path.lexists(target))
        )
        targets[target] = sha256
        if not _holds(target, sha256):
            copies.append((path, target, sha256))
    check_free_space(output / "photos", sum(path.stat().st_size for path, _, _ in copies))
    for path, target, sha256 in copies:
        content = read_unchanged(path, sha256)
        with atomic_write(target, len(content)) as temporary:
            temporary.write_bytes(content)
    return Counter(target.parent.name for target, sha256 in targets.items() if _holds(target, sha256))


def _check_writable(folder: Path) -> None:
    """Raise ValueError if a folder is something else, or cannot be created or written."""
    there = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    reason = "" if os.access(there, os.W_OK | os.X_OK) else "is not writable"
    if not there.is_dir():
        reason = "is no folder"
    elif len(os.fsencode(folder.name)) > _MAX_NAME_BYTES:
        there, reason = folder, f"has a name of more than {_MAX_NAME_BYTES} bytes"
    if reason:
        raise ValueError(f"{one_line(there)} {reason}: expected a folder for the photos: give another output=FOLDER")


def _check_photo(path: Path, sha256: str, max_pixels: int) -> None:
    """Raise ValueError if a file is not the one with that digest, or is no photo."""
    content = read_unchanged(path, sha256)
    try:
        with named_memory_error(path):
            read_image(io.BytesIO(content), max_pixels)
    except ImageMemoryError:
        raise
    except Exception as error:  # Pillow raises anything from EOFError to struct.error for a damaged file
        reason = read_error_reason(error)
        raise ValueError(f"{one_line(path)} is no photo ({reason}): delete its line from the labels") from error


def _names(path: Path, sha256: str) -> Iterator[str]:
    """Yield the names that a copy may have: that of the photo, and others if another file has it."""
    cut = os.fsencode(path.stem)[:_MAX_STEM_BYTES].decode(errors="ignore")
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _MAX_SUFFIX_BYTES else ""
    if cut + suffix == path.name:
        yield path.name
    yield f"{cut}-{sha256[:12]}{suffix}"
    yield from (f"{cut}-{sha256[:12]}-{number}{suffix}" for number in count(2))


def _holds(target: Path, sha256: str) -> bool:
    """Return whether a file is there and is the photo with that digest."""
    try:
        return image_sha256(target) == sha256
    except (OSError, ValueError):
        return False


def _read_labels(labels: Path) -> list[tuple[Path, str, str]]:
    """Return the path, class and SHA-256 of each photo, each photo once."""
    name = one_line(labels)
    try:
        header, *rows = read_csv(labels) or [[]]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"labels={name} cannot be read ({reason}): expected a labels.csv") from error
    if missing := [column for column in LABEL_COLUMNS if column not in header]:
        raise ValueError(f"labels={name} has no column {missing[0]}: expected {', '.join(LABEL_COLUMNS)}")
    found: dict[str, tuple[Path, str, str]] = {}
    for number, row in enumerate(rows, 2):
        where = f"{name}, line {number}"
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} cells, expected {len(header)}, as in the first line")
        path, label, sha256 = (row[header.index(column)] for column in LABEL_COLUMNS)
        if not label or Path(label).name != label or label.startswith("."):
            raise ValueError(f"{where}: class {one_line(label) or 'empty'}: expected the name of a folder")
        if not is_sha256(sha256):
            raise ValueError(f"{where}: no SHA-256 for {one_line(path)}: expected 64 hexadecimal digits")
        _, earlier, _ = found.setdefault(sha256, (Path(path), label, sha256))
        if earlier != label:
            raise ValueError(
                f"{where}: {one_line(path)} is both {one_line(earlier)} and {one_line(label)}: delete one of the lines"
            )
    return list(found.values())
