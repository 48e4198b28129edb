"""Refuse image files whose tags or scans take far more memory or time than their size and pixels suggest."""

import os
import re
import struct
from typing import IO, Any

from PIL import TiffImagePlugin

_MAX_VALUES = 1 << 20  # of a tag: more than the rows, and so the strips, of any photo
_MAX_SCANS = 100  # of a progressive JPEG file: usual are about ten; each goes through all pixels
# Bytes of a value of each type of the TIFF standard. Those of 1 byte stay bytes, the others become Python objects.
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_load_tags = TiffImagePlugin.ImageFileDirectory_v2.load


def limit_tags() -> None:
    """Make Pillow check the tags of a TIFF file, and of EXIF in any file, before it copies their values.

    Pillow itself copies a value for each tag that refers to it: 1 MB of EXIF can take 65 GB.
    """

    def load(self: Any, fp: IO[bytes]) -> None:
        _check_tags(fp, ">" if self._endian == ">" else "<", self._bigtiff)
        _load_tags(self, fp)

    TiffImagePlugin.ImageFileDirectory_v2.load = load  # type: ignore[method-assign]


def _check_tags(file: IO[bytes], order: str, is_big: bool) -> None:
    """Check the directory at which `file` is.

    Raises:
        ValueError: A tag has too many values, or several tags share the bytes of their values.
    """
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    head, entry, offset_format = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHL4s", "L")
    count_bytes, entry_bytes = struct.calcsize("<" + head), struct.calcsize("<" + entry)
    start = file.read(count_bytes)
    count = struct.unpack(order + head, start)[0] if len(start) == count_bytes else 0
    total = 0
    for _ in range(count):
        row = file.read(entry_bytes)
        if len(row) < entry_bytes:
            break
        _, kind, number, value = struct.unpack(order + entry, row)
        unit = _VALUE_BYTES.get(kind, 0)
        size = unit * number
        if size <= len(value):
            continue
        if struct.unpack(order + offset_format, value)[0] + size > end:  # Pillow stops here
            break
        total += size
        if total > end or (unit > 1 and number > _MAX_VALUES):
            raise ValueError("its tags have too many values")
    file.seek(here)


def check_scans(file: IO[bytes]) -> None:
    """Check the number of scans of a JPEG file.

    Raises:
        ValueError: There are too many.
    """
    file.seek(0)
    content, position, scans = file.read(), 2, 0
    while found := _MARKER.search(content, position):
        marker, position = content[found.start() + 1], found.end()
        if marker == 0xD9:  # the end of the image; other images may follow
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            continue
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise ValueError(f"a JPEG file of more than {_MAX_SCANS} scans")
        position += int.from_bytes(content[position : position + 2], "big")


_MARKER = re.compile(rb"\xff+[^\x00\xff]")
