"""Copy photos that a person has labeled into one folder per class."""

import shutil
from collections import Counter
from pathlib import Path

from flowers.data.images import ImageFileError, read_unchanged
from flowers.data.splits import is_sha256
from flowers.evaluation.review_page import LABEL_COLUMNS
from flowers.runtime.files import atomic_write
from flowers.runtime.text import one_line, read_csv


def copy_labeled_photos(labels: Path, output: Path) -> Counter[str]:
    """Copy the photos in labels.csv to `output`/CLASS, a folder to train on. Nothing is moved or overwritten.

    All lines and photos are checked before the first copy. A photo that is there already is not copied again.

    Args:
        labels: A labels.csv, which the page of `flowers.suggest` saves.
        output: The folder with one subfolder per class, which may hold photos.

    Returns:
        The number of photos of each class in labels.csv.

    Raises:
        ValueError: The file is no labels.csv, a class is no name of a folder, a photo has two classes, or a photo is
            missing or has changed.
    """
    rows = _read_labels(labels)
    targets: dict[Path, str] = {}
    copies = list[tuple[Path, Path]]()
    for path, label, sha256 in rows:
        read_unchanged(path, sha256)
        target = output / label / path.name
        if targets.get(target, sha256) != sha256 or not _is_free(target, sha256):
            target = target.with_name(f"{path.stem}-{sha256[:12]}{path.suffix}")  # another photo has its name
        targets[target] = sha256
        if not target.exists():
            copies.append((path, target))
    for path, target in copies:
        with atomic_write(target, path.stat().st_size) as temporary:
            shutil.copyfile(path, temporary)
    return Counter(label for _, label, _ in rows)


def _is_free(target: Path, sha256: str) -> bool:
    """Return whether no other file has this name."""
    try:
        read_unchanged(target, sha256)
    except ImageFileError:
        return not target.exists()
    return True


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
