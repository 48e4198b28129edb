"""Find damage in image files that Pillow reads without an error."""

import re
import zlib
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_END = b"\xff\xd9"  # of a JPEG image
_SCAN = b"\xff\xda"  # the start of one
_HIDDEN = re.compile(rb"\0{64,}")  # bytes that a download or a disk has lost
_STEP = 64  # bytes of a JPEG file, whose pixels show where the file is damaged
_SLACK = 4  # bytes that an encoder may leave before a marker

# What libjpeg warns of, and goes on with gray, or with what it makes of other data. It warns of harmless things, too.
_LOSSES = ("remature end of", "bad Huffman code", "bad arithmetic code", "instead of RST")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker")

_PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT"}


def find_damage(content: bytes, kind: str, mode: str) -> str:
    """Return what is lost of an image that Pillow decodes, in a few words; empty if nothing is known to be lost.

    A JPEG file is decoded again, at an eighth of its size, by a decoder that tells of the warnings of libjpeg. Of a PNG
    file, the checksums are compared. Other formats have none: of a WebP file, only an end of zeros is found.

    Args:
        content: The file.
        kind: The format, as Pillow names it.
        mode: The mode of the image, likewise.
    """
    if kind in ("JPEG", "MPO"):
        return _jpeg_damage(content, "CMYK" if mode == "CMYK" else "GRAY")
    if kind == "PNG":
        return _png_damage(content)
    return _webp_damage(content) if kind == "WEBP" else ""


def _jpeg_damage(content: bytes, colors: str) -> str:
    start, end, is_progressive = _scan_range(content)
    warning = _jpeg_warning(content, colors)
    if not (_is_loss(warning, content, end, colors) or (is_progressive and _lacks_scans(content, start, end))):
        return ""
    hidden = _HIDDEN.search(content, start, end)
    cut = hidden.start() if hidden else end
    is_tail = hidden.end() >= end - _STEP if hidden else "remature end" in warning
    is_first_scan = content.find(_SCAN, start + 2, cut) < 0
    share = _lost_share(content, start, cut, colors) if is_tail and is_first_scan else 0.0
    return f"about {share:.0%} of it is lost" if share else "a part of it is lost"


def _is_loss(warning: str, content: bytes, end: int, colors: str) -> bool:
    """Return whether a warning of libjpeg tells of lost pixels."""
    extraneous = _EXTRANEOUS.search(warning)
    if extraneous is None:
        return any(loss in warning for loss in _LOSSES)
    if int(extraneous[1]) <= _SLACK:
        return False
    # Some encoders fill up the file. Of a part that was lost, the decoder makes pixels, which it lacks without them.
    filled = len(content[:end]) - len(content[:end].rstrip(content[end - 1 : end]))
    if filled <= _SLACK:
        return True
    return _is_loss(_jpeg_warning(content[: end - filled + 1] + content[end:], colors), b"", 0, colors)


def _lacks_scans(content: bytes, start: int, end: int) -> bool:
    """Return whether a progressive JPEG file ends before its first component, the brightness, has all its digits."""
    missing_bits: dict[int, int] = {}
    position = start
    while position >= 0:
        header = content[position + 4 : position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")]
        if len(header) < 6:  # the number of components, two bytes of each, the first and the last coefficient, bits
            return True
        low, high, bits = header[-3:]
        if content[start + 5] in header[1:-3:2]:
            missing_bits |= dict.fromkeys(range(low, high + 1), bits & 15)
        position = content.find(_SCAN, position + 2, end)
    return len(missing_bits) < 64 or any(missing_bits.values())


def _jpeg_warning(content: bytes, colors: str) -> str:
    try:
        _decode_jpeg(content, colors, min_height=1, min_width=1, min_factor=1)
    except ValueError as error:
        return str(error)
    return ""


def _decode_jpeg(content: bytes, colors: str, strict: bool = True, **size: int) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        content, colors, fastdct=True, fastupsample=True, strict=strict, **size
    )
    return image


def _scan_range(content: bytes) -> tuple[int, int, bool]:
    """Return where the first scan of a JPEG file starts, where the last one ends, and whether it is progressive."""
    position, is_progressive = 2, False
    while (marker := content[position : position + 2]) not in (_SCAN, b""):
        is_progressive |= marker == b"\xff\xc2"
        is_filler = marker == b"\xff\xff"
        position += 1 if is_filler else 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    end = content.find(_END, position)
    return position, end if end >= 0 else len(content), is_progressive


def _lost_share(content: bytes, start: int, cut: int, colors: str) -> float:
    """Return the share of the rows that begin to differ with the last bytes before `cut`; 0 if none do."""
    try:
        image, shorter = (
            _decode_jpeg(content[:end] + _END, colors, strict=False) for end in (cut, max(start, cut - _STEP))
        )
    except ValueError:
        return 0.0
    rows: NDArray[Any] = (image != shorter).any(axis=(1, 2))
    return float(1 - rows.argmax() / len(rows)) if rows.any() else 0.0


def _png_damage(content: bytes) -> str:
    position = 8
    while len(head := content[position : position + 8]) == 8:
        size, name = int.from_bytes(head[:4], "big"), head[4:]
        end = position + 8 + size
        if name == b"IEND":
            break
        is_right = zlib.crc32(content[position + 4 : end]) == int.from_bytes(content[end : end + 4], "big")
        if name in _PNG_PIXELS and not is_right:
            return f"the checksum of its part {name.decode()} is wrong"
        if not name.isalpha():
            return "its parts end early"
        position = end + 4
    return ""


def _webp_damage(content: bytes) -> str:
    """Tell of compressed pixels whose end is zeros. A picture of one color has 5 % of them, a photo next to none."""
    position = 12
    while len(head := content[position : position + 8]) == 8:
        size, name = int.from_bytes(head[4:], "little"), head[:4]
        data = content[position + 8 : position + 8 + size]
        if name in (b"VP8 ", b"VP8L"):
            zeros = len(data) - len(data.rstrip(b"\0"))
            return f"about {zeros / len(data):.0%} of it is lost" if zeros > max(_STEP, 0.15 * len(data)) else ""
        position += 8 + size + size % 2
    return ""
