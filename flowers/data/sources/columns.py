"""Which columns of a table hold paths, labels, splits and groups: those asked for, or those whose names say it."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from flowers.data.sources.layout import named_split
from flowers.data.sources.tables import Table
from flowers.runtime.text import listed_names, one_line
from flowers.settings.suggestions import did_you_mean

log = logging.getLogger(__name__)

# What the columns of public tables are called, the plainest first.
_PATHS = (
    *("path", "file", "image", "filename", "file_name", "filepath", "file_path", "image_path", "img_path", "photo"),
    *("img", "image_name", "image_file", "image_id", "photo_id", "id", "name"),
)
_LABELS = ("label", "class", "species", "category", "class_name", "label_name", "target", "variety", "breed")
_SPLITS = ("split", "set", "fold", "subset", "partition")
_GROUPS = ("group", "group_id")
_MANY = 20  # photos from which so many labels are no mistake of a small table
_TRIED = 50  # rows of a column that may hold paths

Asked = str | Literal[False] | None  # the name of a column; False for none; None: guessed


class Columns(NamedTuple):
    """The names of columns of a table; None where there is none."""

    path: str
    label: str
    split: str | None
    group: str | None


def choose_columns(table: Table, asked: Mapping[str, Asked], is_photo: Callable[[str], bool]) -> Columns:
    """Return which columns of a table are used, and say those that were guessed.

    Args:
        table: The table.
        asked: Columns by what they hold: path, label, split and group.
        is_photo: Tells whether a text names a photo.

    Raises:
        ValueError: There is no such column, or it is not certain which one is meant.
    """
    if photos := [name for name in table.columns if "." in name and is_photo(name)]:
        raise ValueError(
            f"{table.name} begins with the photo {one_line(photos[0])}: expected a first line with the names of the "
            "columns, such as path,label"
        )
    for kind, name in asked.items():
        if name and name not in table.columns:
            raise ValueError(
                f"{table.name} has no column {one_line(name)} (data.columns.{kind})"
                f"{did_you_mean(name, table.columns) or f': it has {listed_names(table.columns)}'}"
            )
    used = [name for name in asked.values() if name]
    rest = [name for name in table.columns if name not in used]
    path = asked.get("path") or _path_column(table, rest, is_photo)
    rest = [name for name in rest if name != path]
    label = asked.get("label") or _label_column(table, rest)
    split, group = asked.get("split"), asked.get("group")
    if split is None:
        split = _split_column(table, [name for name in rest if name != label])
    if group is None:
        group = next(iter(_named(_GROUPS, [name for name in rest if name not in (label, split)])), None)
    chosen = Columns(path, label, split or None, group or None)
    guessed = {kind: name for kind, name in chosen._asdict().items() if name and not asked.get(kind)}
    if guessed:
        shown = ", ".join(f"{kind}: {one_line(name)}" for kind, name in guessed.items())
        log.info("taking the columns {%s} of %s; data.columns={label: COLUMN} sets others", shown, table.name)
    return chosen


def check_labels(table: Table, column: str, labels: Sequence[str], asked: bool) -> None:
    """Raise ValueError if a column has so many different texts that it names photos and not classes."""
    count = len({*labels})
    if count * 2 > len(labels) >= _MANY:
        advice = "use a column with the names of classes" if asked else "which column holds the names of the classes?"
        raise ValueError(
            f"{table.name}: {count:,} labels for {len(labels):,} photos in the column {one_line(column)}: {advice} "
            f"(data.columns={{label: COLUMN}}: {listed_names(table.columns)})"
        )


def _path_column(table: Table, columns: Sequence[str], is_photo: Callable[[str], bool]) -> str:
    named = _named(_PATHS, columns)
    if len(named) == 1:
        return named[0]
    found = [name for name in named or columns if any(map(is_photo, table.cells(name)[:_TRIED]))]
    if found and (named or len(found) == 1):
        return found[0]
    if named:
        return named[0]
    raise ValueError(_which(table, columns, "the paths of the photos", "path"))


def _label_column(table: Table, columns: Sequence[str]) -> str:
    named = _named(_LABELS, columns)
    if len(named) == 1 or (not named and len(columns) == 1):
        return (named or columns)[0]
    raise ValueError(_which(table, named or columns, "the labels", "label"))


def _split_column(table: Table, columns: Sequence[str]) -> str | None:
    named = _named(_SPLITS, columns)
    for name in named:
        if all(named_split(text) is not None for text in {*table.cells(name)} if text.strip()):
            return name
    if named:
        log.info("the column %s of %s holds no splits such as train: not used", one_line(named[0]), table.name)
    return None


def _which(table: Table, columns: Sequence[str], content: str, kind: str) -> str:
    return (
        f"{table.name} has the columns {listed_names(columns) or 'of the paths alone'}: which one holds {content}? "
        f"Give data.columns={{{kind}: COLUMN}}"
    )


def _named(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the columns that have one of these names, in the order of the names."""
    plain = {re.sub(r"[\s-]+", "_", column.strip().lower()): column for column in reversed(columns)}
    return [plain[name] for name in names if name in plain]
