"""Build the source that settings name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from flowers.data.images import pixels_of
from flowers.data.remote import is_remote
from flowers.data.sources.folder import FolderSource
from flowers.data.sources.shard_format import MANIFEST_FILE
from flowers.data.sources.shards import ShardSource
from flowers.data.sources.source import ImageSource
from flowers.data.sources.table import list_photos, table_root
from flowers.data.sources.tables import is_table
from flowers.settings.schema.training import Readable, Remote
from flowers.settings.schema.values import GROUP_PATTERN, Duplicates
from flowers.settings.validation import check_values

# The keys that `build_source` reads, beside `root`.
SOURCE_SETTINGS = {
    *("source", "on_corrupt", "layout", "merge_similar_names", "max_megapixels", "table", "columns"),
    *("packed", "s3_endpoint", "retry_timeout", "cache_gb", "shuffle_shards"),
}

_REMOTE = {"retry_timeout": 300.0, "cache_gb": 20.0, "shuffle_shards": 16}  # of runs that stored none


def build_source(settings: Mapping[str, Any]) -> ImageSource:
    """Return the source of images that settings name. It is used later: nothing is read or downloaded.

    Args:
        settings: The keys of the group `data`. Those that a source does not need, it ignores.

    Raises:
        ValueError: A setting is wrong.
    """
    remote = {name: settings.get(name, value) for name, value in _REMOTE.items()}
    check_values(remote, Remote, "data.")
    if (megapixels := settings.get("max_megapixels")) is not None:  # runs of earlier versions have none
        check_values({"max_megapixels": megapixels}, Readable, "data.")
    limit = {"max_pixels": pixels_of(megapixels)}
    kind = "shards" if settings.get("packed") else "table" if settings.get("table") else "folder"
    return SOURCES[kind]({**settings, **remote, **limit})


def photos_setting(photos: str | Path) -> dict[str, Any]:
    """Return the settings of `build_source` for what a user names as labeled photos: a folder, or a table."""
    return {"root": None, "table": str(photos)} if is_table(photos) else {"root": photos, "table": None}


def split_settings(split_file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a split that was made of other settings: its file, also in place of a table.

    The table of the training may be gone since, or name other photos.
    """
    if not settings.get("table"):
        return {"split_file": split_file}
    columns = {"path": "path", "label": "class", "split": False, "group": False}
    return {"split_file": split_file, "table": split_file, "columns": columns, "group_by": "auto"}


def _folder(settings: Mapping[str, Any]) -> ImageSource:
    root = settings["root"]
    if is_remote(root):
        raise ValueError(f"data.root={root}: expected a folder; an address needs data=shards (see flowers.pack)")
    names = ("source", "on_corrupt", "layout", "merge_similar_names", "max_pixels")
    given = {name: settings[name] for name in names if name in settings}
    return FolderSource(root, given.pop("source", None), **given)


def _table(settings: Mapping[str, Any]) -> ImageSource:
    table, columns = str(settings["table"]), dict(settings.get("columns") or {})
    for name, place in (("table", table), ("root", settings.get("root"))):
        if place is not None and is_remote(place):
            raise ValueError(f"data.{name}={place}: with data=table, nothing is downloaded: expected a path")
    group_by = settings.get("group_by", "auto")
    if group_by not in get_args(Duplicates) and not group_by.startswith(GROUP_PATTERN):
        if columns.get("group") not in (None, group_by):
            raise ValueError(f"data.group_by={group_by} data.columns.group={columns['group']}: expected one of them")
        columns["group"] = group_by
    how = settings.get("on_corrupt", "error"), settings.get("merge_similar_names", False)
    return FolderSource(
        table_root(table, settings.get("root")),
        settings.get("source"),
        how[0],
        max_pixels=settings["max_pixels"],
        listing=partial(list_photos, path=table, columns=columns, on_corrupt=how[0], merge=how[1]),
    )


def _shards(settings: Mapping[str, Any]) -> ImageSource:
    names = ("retry_timeout", "cache_gb", "shuffle_shards", "max_pixels")
    return ShardSource(str(settings["root"]), settings.get("s3_endpoint"), *(settings[name] for name in names))


SOURCES: dict[str, Callable[[Mapping[str, Any]], ImageSource]] = {
    "folder": _folder,
    "table": _table,
    "shards": _shards,
}


def is_packed(root: str) -> bool:
    """Return whether a folder or an address holds shards."""
    return is_remote(root) or Path(root, MANIFEST_FILE).is_file()
