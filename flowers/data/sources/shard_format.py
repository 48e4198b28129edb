"""The files of a set of shards. Those who write them need no torch.

A set of shards is a folder, or an address of such a folder, with these files:

- `train-000000.tar` …, `val-…`, `test-…`: the shards, each with images of one split, in the layout of WebDataset. An
  image is the member `KEY.jpg` (or another suffix), followed by `KEY.cls` with its class number in decimal. KEY is the
  line of the image in split.csv, from 0, in nine digits.
- `split.csv`: one line per image, as in a run folder.
- `places.npy`: int64 (N, 3), for each line of split.csv the shard number, the first byte and the size of the image.
- `shards.json`: written last. `format` (1), `photos` (N), `classes`, and `[name, size in bytes, SHA-256]` of the other
  files: `split`, `places` and the list `shards` in the order of the shard numbers. `gray_peak`, if there are grayscale
  images of more than 8 bits: the largest value of them all, but for a thousandth of the pixels.
"""

import json
import re
from typing import NamedTuple, TypeGuard

from flowers.data.remote import RemoteFile
from flowers.data.splits import is_sha256
from flowers.settings.schema.run_files import CLASSES_TEXT, are_classes

MANIFEST_FILE, SHARD_SPLIT_FILE, INDEX_FILE = "shards.json", "split.csv", "places.npy"
SHARD_FORMAT = 1

_MAX_FILE_BYTES = 2**50


class Manifest(NamedTuple):
    """The content of shards.json.

    Attributes:
        photos: Number of images.
        classes: Class names.
        split: split.csv.
        places: places.npy.
        shards: The shards in the order of their numbers.
        gray_peak: The largest value of grayscale images of more than 8 bits; 0 without such images.
    """

    photos: int
    classes: list[str]
    split: RemoteFile
    places: RemoteFile
    shards: list[RemoteFile]
    gray_peak: int = 0


def parse_manifest(text: str) -> Manifest:
    """Return the content of shards.json.

    Raises:
        ValueError: If something in it is missing or not as it should be, with the reason.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    if content.get("format") != SHARD_FORMAT:
        raise ValueError(f"it has format {content.get('format')!r:.20}: expected {SHARD_FORMAT}; pack the images again")
    photos, classes, shards = (content.get(name) for name in ("photos", "classes", "shards"))
    if not _is_size(photos):
        raise ValueError(f"photos is {photos!r:.20}: expected the number of images")
    if not isinstance(classes, list) or not are_classes(classes):
        raise ValueError(f"classes is not a list of names: expected {CLASSES_TEXT}")
    if unknown := content.keys() - {"format", "photos", "classes", "split", "places", "shards", "gray_peak"}:
        raise ValueError(f"{min(unknown)[:100]}: no such key")
    if not isinstance(shards, list) or not shards:
        raise ValueError("shards is not a list of files")
    files = [_parse_file(file) for file in (content.get("split"), content.get("places"), *shards)]
    if len({file.name for file in files}) < len(files):
        raise ValueError("a file occurs twice")
    peak = content.get("gray_peak", 0)
    if type(peak) is not int or not 0 <= peak < 2**16:
        raise ValueError(f"gray_peak is {peak!r:.20}: expected a value of 16 bits")
    return Manifest(photos, classes, files[0], files[1], files[2:], peak)


def _parse_file(file: object) -> RemoteFile:
    if isinstance(file, list) and len(file) == 3:
        name, size, sha256 = file
        # A name is part of a path and of an address. Neither may lead out of the folder.
        is_name = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", name)
        if is_name and _is_size(size) and is_sha256(sha256):
            return RemoteFile(name, size, sha256)
    raise ValueError(f"{file!r:.100} is not a file: expected [name without a folder, size, SHA-256]")


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _MAX_FILE_BYTES
