"""The photos that a table names: `data=table data.table=labels.csv`."""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowers.data.sources.columns import Asked, Columns, check_labels, choose_columns
from flowers.data.sources.layout import ImageFile, join_similar, named_split
from flowers.data.sources.listing import is_junk, is_note
from flowers.data.sources.parquet import LABELS_FILE, is_parquet, parquet_rows, photos_folder, unpack
from flowers.data.sources.tables import Table, make_table, read_table
from flowers.runtime.text import listed_names, one_line, shell_setting
from flowers.settings.schema.run_files import CLASSES_TEXT, are_classes
from flowers.settings.schema.values import OnCorrupt

log = logging.getLogger(__name__)

_LISTED = 5  # rows of a kind in a message


def table_root(path: str | Path, root: str | Path | None) -> Path:
    """Return the folder below which the photos of a table are: `root`, that of the table, or one beside Parquet files.

    Raises:
        ValueError: A Parquet file is damaged, or cannot be read here.
    """
    if root is not None:
        return Path(root)
    unpacked = photos_folder(path) if is_parquet(path) else None
    return unpacked or Path(path).absolute().parent


def list_photos(
    root: Path, path: str, columns: Mapping[str, Asked], on_corrupt: OnCorrupt = "error", merge: bool = False
) -> list[ImageFile]:
    """Return the photos that a table names, sorted by path.

    A photo is named by its path below `root`, or by the end of that path, with or without the ending of the file.

    Args:
        root: The folder of the photos.
        path: The table.
        columns: See `choose_columns`.
        on_corrupt: For rows that cannot be used: "error" names them and stops, "skip" names and ignores them.
        merge: Whether labels whose names differ in case, spaces, hyphens or underscores are one.

    Raises:
        ValueError: The table cannot be used.
    """
    table, finder = _read(root, path), PhotoFinder(root)
    chosen = choose_columns(table, columns, lambda text: finder.find(text) is not None)
    files = join_similar(table.name, _usable(table, chosen, finder, on_corrupt), merge, "labels")
    labels = [file.label for file in files]
    check_labels(table, chosen.label, labels, bool(columns.get("label")))
    if len({*labels}) < 2 or not are_classes([*{*labels}]):
        shown = listed_names(sorted({*labels}), 3)
        raise ValueError(f"{table.name} has the label(s) {shown} in {one_line(chosen.label)}: expected {CLASSES_TEXT}")
    trained = {file.label for file in files if file.split in (None, "train")}
    if missing := sorted({*labels} - trained):
        raise ValueError(
            f"{table.name} has no train photo of the class(es) {listed_names(missing)}: "
            "expected all classes that val and test have"
        )
    _check_groups(table, chosen, files)
    _count_unnamed(root, files, table.name)
    return sorted(files)


def _read(root: Path, path: str) -> Table:
    if not is_parquet(path):
        return read_table(path)
    if photos_folder(path) is None:
        columns, *rows = parquet_rows(path)
        return make_table(one_line(path), columns, rows)
    unpack(path, root)
    return read_table(root / LABELS_FILE)


class PhotoFinder:
    """Finds the files of photos below a folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, name: str) -> str | None:
        """Return the path below the folder of a photo; None if there is no such photo, or several."""
        candidates = self.candidates(name)
        return candidates[0] if len(candidates) == 1 else None

    def candidates(self, name: str) -> list[str]:
        """Return the paths below the folder of the files that a name may mean."""
        if not name.strip() or "\0" in name:
            return []
        for text in dict.fromkeys((name, name.strip(), name.replace("\\", "/"))):
            path = self.below(text)
            if path is not None and os.path.isfile(f"{self.root}/{path}"):  # noqa: PTH113  # millions of them
                return [path]
        return [] if name.startswith("/") else self._ending_in(os.path.normpath(name.strip().replace("\\", "/")))

    def below(self, name: str) -> str | None:
        """Return the path below the folder that a text means; None if it is outside."""
        path = os.path.normpath(f"{self.root}/{name}" if not name.startswith("/") else name)
        start = self.root.rstrip("/") + "/"
        if not path.startswith(start):
            path = os.path.normpath(os.path.realpath(path)) if name.startswith("/") else path
        return path.removeprefix(start) if path.startswith(start) else None

    def _ending_in(self, name: str) -> list[str]:
        """Return the files whose path ends in a name, as it is or without the ending of the file."""
        if self._by_stem is None:
            self._by_stem = self._index()
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        found = [
            path
            for path in self._by_stem.get(stem.rpartition("/")[2], [])
            if f"/{path}".lower().endswith(suffix.lower()) and _stem(f"/{path}").endswith(f"/{stem}")
        ]
        return found or [
            path
            for path in self._by_stem.get(name.rpartition("/")[2], [])
            if _stem(f"/{path}").endswith(f"/{name}") and not is_note(path)
        ]

    def _index(self) -> dict[str, list[str]]:
        log.info("looking for photos below %s", one_line(self.root))
        found = defaultdict[str, list[str]](list)
        for parent, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not is_junk(name))
            below = os.path.relpath(parent, self.root)
            prefix = "" if below == "." else f"{below}/"
            for name in names:
                if not is_junk(name):
                    found[_stem(name)].append(f"{prefix}{name}")
        return dict(found)


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]  # noqa: PTH122  # a path object takes longer than the rest


def _usable(table: Table, columns: Columns, finder: PhotoFinder, on_corrupt: OnCorrupt) -> list[ImageFile]:
    """Return the photos of the rows that can be used; name the others."""
    names, labels = table.cells(columns.path), _stripped(table, columns.label)
    splits = _stripped(table, columns.split) if columns.split else ["train"] * len(names)
    groups = _stripped(table, columns.group) if columns.group else ["-"] * len(names)
    _check_inside(table, names, finder)
    words = {text: named_split(text) for text in {*splits}}
    problems = defaultdict[str, list[str]](list)
    files: dict[str, ImageFile] = {}
    conflicts: set[str] = set()
    for number, (name, label, split, group) in enumerate(zip(names, labels, splits, groups, strict=True), 2):
        word = words[split]
        if word == "" and not label:  # the photos of a contest, whose labels nobody has
            continue
        empty = next(
            (kind for kind, cell in zip(Columns._fields, (name, label, split, group), strict=True) if not cell), ""
        )
        found = finder.candidates(name) if not empty else []
        if empty:
            problems[f"without a {empty}"].append(name or f"line {number}")
        elif word is None:
            problems["with a split that is not train, val or test"].append(f"{name} ({split})")
        elif len(found) != 1:
            kind = "whose photo is any of several files" if found else "whose photo does not exist"
            problems[kind].append(f"{name} ({listed_names(found, 2)})" if found else name)
        else:
            file = ImageFile(found[0], label, word if columns.split else None, group if columns.group else "")
            earlier = files.setdefault(file.path, file)
            if earlier != file:
                problems["with another label, split or group than an earlier row of the same photo"].append(name)
                conflicts.add(file.path)
    _report(table, finder, problems, on_corrupt)
    return [file for path, file in files.items() if path not in conflicts and file.split != ""]


def _stripped(table: Table, column: str) -> list[str]:
    return [text.strip() for text in table.cells(column)]


def _report(table: Table, finder: PhotoFinder, problems: Mapping[str, Sequence[str]], on_corrupt: OnCorrupt) -> None:
    """Name the rows that cannot be used.

    Raises:
        ValueError: There are some, and they are to stop the program.
    """
    total, root = sum(map(len, problems.values())), one_line(finder.root)
    if len(problems.get("whose photo does not exist", [])) == len(table.rows):
        raise ValueError(
            f"none of the {total:,} photos of {table.name} is below {root}, such as "
            f"{one_line(problems['whose photo does not exist'][0])}: give the folder of the photos, data.root=FOLDER, "
            "or the column of their paths, data.columns={path: COLUMN}"
        )
    lines = [f"  {len(rows):,} {kind}: {listed_names(rows, _LISTED)}" for kind, rows in problems.items()]
    if lines and on_corrupt == "error":
        raise ValueError(
            "\n".join([f"{total:,} of the {len(table.rows):,} rows of {table.name} cannot be used:", *lines])
            + f"\nphotos are looked for below {root} (data.root): mend the rows, or ignore them with on_corrupt=skip "
            "(data.on_corrupt=skip in training)"
        )
    if lines:
        log.warning("\n".join([f"ignoring {total:,} rows of {table.name} that cannot be used:", *lines]))


def _check_inside(table: Table, names: Sequence[str], finder: PhotoFinder) -> None:
    """Raise ValueError if photos are outside of the folder, which alone may be read."""
    addresses = [name for name in names if "://" in name]
    if addresses:
        raise ValueError(
            f"{table.name} names {len(addresses):,} photos by their addresses, such as {one_line(addresses[0])}: "
            "nothing is downloaded: expected paths of files"
        )
    outside = [name for name in names if (name.startswith(("/", "..")) or "/.." in name) and finder.below(name) is None]
    if outside:
        common = os.path.commonpath([finder.root, *(Path(finder.root, name).parent for name in outside)])
        raise ValueError(
            f"{table.name} names {len(outside):,} photos outside of {one_line(finder.root)}, such as "
            f"{one_line(outside[0])}: give a folder that holds all of them, such as "
            f"{one_line(shell_setting('data.root', os.path.normpath(common)))}"
        )


def _check_groups(table: Table, columns: Columns, files: Sequence[ImageFile]) -> None:
    """Raise ValueError for a column of groups that has one text, or another one for each photo."""
    count = len({file.group for file in files})
    if not columns.group or 1 < count < len(files):
        return
    found = "the same group for all photos" if count == 1 else "another group for each photo"
    raise ValueError(
        f"{table.name} has {found} in the column {one_line(columns.group)}: expected a column such as the plant, the "
        "patient or the camera of a photo (data.columns.group=COLUMN), or none (data.columns.group=false)"
    )


def _count_unnamed(root: Path, files: Sequence[ImageFile], name: str) -> None:
    """Say how many files beside the photos are in no row of the table."""
    used = {file.path for file in files}
    folders = sorted({path.rpartition("/")[0] for path in used})
    rest = [path for folder in folders for path in _files_in(root, folder) if path not in used]
    if rest:
        log.info("%s files beside the photos are not used from %s: %s", f"{len(rest):,}", name, listed_names(rest, 3))


def _files_in(root: Path, folder: str) -> list[str]:
    with os.scandir(root / folder) as entries:
        names = sorted(
            each.name for each in entries if not is_junk(each.name) and not is_note(each.name) and each.is_file()
        )
    return [f"{folder}/{name}" if folder else name for name in names]
