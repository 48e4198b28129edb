"""Recognize raw photos of cameras by their content: what Pillow reads of many of them is a thumbnail."""

import struct
from typing import IO

from PIL import TiffImagePlugin

# Of files that are no TIFF, and of TIFF files that say more than their tags: where in the file, and what is there.
_SIGNATURES = {
    (0, b"FUJIFILMCCD-RAW"): "Fujifilm RAF",
    (0, b"IIRO"): "Olympus ORF",
    (0, b"IIRS"): "Olympus ORF",
    (0, b"MMOR"): "Olympus ORF",
    (0, b"IIU\0"): "Panasonic RW2",
    (0, b"FOVb"): "Sigma X3F",
    (0, b"\0MRM"): "Minolta MRW",
    (4, b"ftypcrx "): "Canon CR3",
    (6, b"HEAPCCDR"): "Canon CRW",
    (8, b"CR\x02"): "Canon CR2",
    (8, b"IIIITwaR"): "Phase One IIQ",
    (8, b"MMMMRawT"): "Phase One IIQ",
}
_HEAD_BYTES = 16
_TIFF = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"
_MAKERS = {  # the first word of the maker, and the format of its raw photos
    "EASTMAN": "Kodak DCR",
    "HASSELBLAD": "Hasselblad 3FR",
    "KODAK": "Kodak DCR",
    "NIKON": "Nikon NEF",
    "PENTAX": "Pentax PEF",
    "RICOH": "Pentax PEF",
    "SAMSUNG": "Samsung SRW",
    "SEIKO": "Epson ERF",
    "SONY": "Sony ARW",
}
_NEW_SUBFILE_TYPE, _PHOTOMETRIC, _MAKE, _SUB_IFDS, _DNG_VERSION = 254, 262, 271, 330, 50706
_SENSOR = {32803, 34892}  # values of _PHOTOMETRIC: a color filter array, and linear raw


def check_not_raw(file: IO[bytes]) -> None:
    """Check that a file is no raw photo.

    Raises:
        ValueError: It is one, with its format. Or it is a TIFF file whose first image is a thumbnail of another.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    kinds = [name for (start, text), name in _SIGNATURES.items() if head[start : start + len(text)] == text]
    kind = kinds[0] if kinds else _raw_tiff(file, head) if head.startswith(_TIFF) else ""
    if kind:
        raise ValueError(f"a raw photo ({kind}), which is not decoded: convert it to JPEG, PNG or TIFF")


def _raw_tiff(file: IO[bytes], head: bytes) -> str:
    """Return the raw format of a TIFF file; empty if it is an ordinary one."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head if head[2:4] in (b"+\0", b"\0+") else head[:8])
        file.seek(tags.next)
        tags.load(file)
        words = str(tags.get(_MAKE, "")).upper().split()
        is_thumbnail = tags.get(_NEW_SUBFILE_TYPE, 0) & 1 and (_SUB_IFDS in tags or tags.next)
        is_sensor = tags.get(_PHOTOMETRIC) in _SENSOR
    except (OSError, EOFError, SyntaxError, LookupError, TypeError, OverflowError, struct.error):
        return ""  # Pillow says what is wrong with it
    if _DNG_VERSION in tags:
        return "DNG"
    return _MAKERS.get(words[0] if words else "", "its first image is a thumbnail") if is_thumbnail or is_sensor else ""
