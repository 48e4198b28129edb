"""Build the source that settings name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowers.data.images import pixels_of
from flowers.data.remote import is_remote
from flowers.data.sources.folder import FolderSource
from flowers.data.sources.shard_format import MANIFEST_FILE
from flowers.data.sources.shards import ShardSource
from flowers.data.sources.source import ImageSource
from flowers.settings.schema.training import Readable, Remote
from flowers.settings.validation import check_values

# The keys that `build_source` reads, beside `root`.
SOURCE_SETTINGS = {
    *("source", "on_corrupt", "layout", "merge_similar_names", "max_megapixels"),
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
    return SOURCES["shards" if settings.get("packed") else "folder"]({**settings, **remote, **limit})


def _folder(settings: Mapping[str, Any]) -> ImageSource:
    root = settings["root"]
    if is_remote(root):
        raise ValueError(f"data.root={root}: expected a folder; an address needs data=shards (see flowers.pack)")
    names = ("source", "on_corrupt", "layout", "merge_similar_names", "max_pixels")
    given = {name: settings[name] for name in names if name in settings}
    return FolderSource(root, given.pop("source", None), **given)


def _shards(settings: Mapping[str, Any]) -> ImageSource:
    names = ("retry_timeout", "cache_gb", "shuffle_shards", "max_pixels")
    return ShardSource(str(settings["root"]), settings.get("s3_endpoint"), *(settings[name] for name in names))


SOURCES: dict[str, Callable[[Mapping[str, Any]], ImageSource]] = {"folder": _folder, "shards": _shards}


def is_packed(root: str) -> bool:
    """Return whether a folder or an address holds shards."""
    return is_remote(root) or Path(root, MANIFEST_FILE).is_file()
