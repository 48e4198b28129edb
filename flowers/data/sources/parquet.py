"""Tables in Parquet files, also with the photos in them, as the Hugging Face hub stores sets of photos."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flowers.data.sources.layout import named_split
from flowers.data.sources.tables import cell_text
from flowers.runtime.extras import require_extra
from flowers.runtime.files import atomic_write, read_json, write_json
from flowers.runtime.logging import progress_bar
from flowers.runtime.text import one_line, write_csv
from flowers.settings.schema.values import PARQUET

LABELS_FILE, _STATE_FILE = "labels.csv", ".unpacked.json"

_ROWS = 256  # that are in memory at a time, with their photos
_SPLIT_COLUMN = "split"
_METADATA = b"huggingface"


def is_parquet(path: str | Path) -> bool:
    """Return whether a path is that of a Parquet file, or of a folder that holds some."""
    return bool(parquet_files(path))


def parquet_files(path: str | Path) -> list[Path]:
    """Return the Parquet files that a path names, sorted."""
    place = Path(path)
    if place.is_dir():
        return sorted(place.rglob(f"*{PARQUET}"))
    return [place] if place.suffix.lower() == PARQUET and place.is_file() else []


def photos_folder(path: str | Path) -> Path | None:
    """Return the folder beside Parquet files into which their photos are unpacked; None if they hold no photos.

    Raises:
        ValueError: A package is missing, or a file is damaged.
    """
    place = Path(path).absolute()
    has_photos = _photo_column(_open(parquet_files(place)[0]).schema_arrow) is not None
    return place.with_name(f"{place.name.removesuffix(PARQUET)}-photos") if has_photos else None


def parquet_rows(path: str | Path) -> list[list[str]]:
    """Return the names of the columns of Parquet files without photos, and their rows as texts."""
    rows = [*_texts(Path(path))]
    return [rows[0][0] if rows else [], *(cells for _, cells, _ in rows)]


def unpack(path: str | Path, root: Path) -> None:
    """Write the photos in Parquet files into a folder, with a table of them, `labels.csv`, unless they are there.

    Raises:
        ValueError: The folder holds something else.
    """
    files = parquet_files(path)
    state = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    root.mkdir(parents=True, exist_ok=True)
    if (root / _STATE_FILE).is_file():
        if read_json(root / _STATE_FILE) != state:
            raise ValueError(
                f"{one_line(root)} holds photos of another state of {one_line(path)}: delete it, or set data.root"
            )
        if (root / LABELS_FILE).is_file():  # written last
            return
    elif any(root.iterdir()):
        raise ValueError(
            f"{one_line(root)} holds something else than the photos of {one_line(path)}, which are to be unpacked into "
            "it: set data.root to a new folder"
        )
    write_json(state, root / _STATE_FILE)
    used, table = {LABELS_FILE}, list[list[str]]()
    total = sum(_open(file).metadata.num_rows for file in files)
    for columns, cells, photo in progress_bar(_texts(Path(path)), "Unpacking photos", total):
        if photo.content:
            cells[photo.column] = _file_name(photo.name, len(table), used)
            with atomic_write(root / cells[photo.column], durable=False) as part:
                part.write_bytes(photo.content)
        table += [cells] if table else [columns, cells]
    write_csv(root / LABELS_FILE, table)


def _file_name(name: str, number: int, used: set[str]) -> str:
    """Return a name for a photo that is no path and that no other photo has."""
    plain = re.sub(r"[^\w.-]+", "_", re.split(r"[/\\]", name)[-1]).lstrip(".")[-100:] or f"{number:07}.img"
    chosen = plain if plain.lower() not in used else f"{number:07}-{plain}"
    used.add(chosen.lower())
    return chosen


class _Photo(NamedTuple):
    """The photo of a row: the number of its column, its name, and the content of its file, if they are there."""

    column: int
    name: str
    content: bytes | None


def _texts(path: Path) -> Iterator[tuple[list[str], list[str], _Photo]]:
    """Yield for each row the names of the columns, its cells and its photo."""
    files = parquet_files(path)
    splits = [named_split(str(file.relative_to(path) if path.is_dir() else file.name)) for file in files]
    for file, split in zip(files, splits, strict=True):
        content = _open(file)
        schema = content.schema_arrow
        photo, classes = _photo_column(schema), _class_names(schema.metadata)
        kinds = dict(zip(schema.names, schema.types, strict=True))
        names = [name for name, kind in kinds.items() if name == photo or _is_plain(kind)]
        has_split = all(splits) and not {"split", "set"} & {name.lower() for name in names}
        columns = [*names, *([_SPLIT_COLUMN] if has_split else [])]
        for batch in content.iter_batches(_ROWS, columns=names):
            for values in batch.to_pylist():
                cells = ["" if name == photo else _cell(values[name], classes.get(name)) for name in names]
                image = values[photo] if photo else None
                image = image if isinstance(image, dict) else {"bytes": image}
                found = _Photo(names.index(photo) if photo else -1, image.get("path") or "", image.get("bytes"))
                if photo and not found.content:
                    cells[found.column] = found.name  # an address, or a file elsewhere: named, and never fetched
                yield columns, cells + ([split or ""] if has_split else []), found


def _cell(value: object, classes: list[str] | None) -> str:
    if classes and isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else ""  # -1: a photo without a label
    return cell_text(value)


def _open(file: Path) -> Any:
    require_extra(f"{one_line(file)}", "parquet", "pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{one_line(file)} is no Parquet file, or a damaged one: {one_line(error)}") from error


def _photo_column(schema: Any) -> str | None:
    """Return the first column that holds the contents of files."""
    return next((name for name, each in zip(schema.names, schema.types, strict=True) if _holds_files(each)), None)


def _holds_files(kind: Any) -> bool:
    from pyarrow.types import is_binary, is_large_binary, is_struct

    if is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(is_binary(kind) or is_large_binary(kind))


def _is_plain(kind: Any) -> bool:
    from pyarrow.types import is_binary, is_large_binary, is_nested

    return not (is_nested(kind) or is_binary(kind) or is_large_binary(kind))


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of the classes of each column of class numbers, as the Hugging Face hub stores them."""
    try:
        features = json.loads((metadata or {})[_METADATA])["info"]["features"]
        return {
            name: [str(each) for each in kind["names"]]
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
