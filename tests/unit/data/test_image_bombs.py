import io
import struct
from collections.abc import Sequence

import pytest
from PIL import Image

from flowers.data.images import read_image

UNDEFINED, SHORT = 7, 3


def directory(tags: Sequence[int], kind: int, number: int, order: str = "<") -> bytes:
    """Return a TIFF file of tags that all have the same values."""
    offset = 8 + 2 + 12 * len(tags) + 4
    rows = b"".join(struct.pack(f"{order}HHLL", tag, kind, number, offset) for tag in tags)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    size = number * (1 if kind == UNDEFINED else 2)
    return magic + struct.pack(f"{order}LH", 8, len(tags)) + rows + bytes(4 + size)


def png(exif: bytes) -> io.BytesIO:
    content = io.BytesIO()
    Image.new("RGB", (20, 10)).save(content, "PNG", exif=b"Exif\0\0" + exif)
    return content


@pytest.mark.parametrize("order", ["<", ">"])
def test_read_image_refuses_tags_that_share_their_bytes(order: str):
    shared = directory(range(1000, 1010), UNDEFINED, 10_000, order)
    for content in (png(shared), io.BytesIO(shared)):
        with pytest.raises(ValueError, match="its tags have too many values"):
            read_image(content)


def test_read_image_refuses_a_tag_of_too_many_values():
    with pytest.raises(ValueError, match="its tags have too many values"):
        read_image(png(directory([0x112], SHORT, 2_000_000)))


@pytest.mark.parametrize("kind", [UNDEFINED, 99])
def test_read_image_takes_large_tags_with_bytes_of_their_own(kind: int):
    assert read_image(png(directory([1000], kind, 100_000))).size == (20, 10)


def test_read_image_takes_tags_that_end_early():
    with pytest.warns(UserWarning, match="Truncated File Read|Tag data larger|Corrupt EXIF"):
        assert read_image(png(directory(range(1000, 1010), UNDEFINED, 10_000)[:60])).size == (20, 10)


def progressive_jpeg(scans: int) -> io.BytesIO:
    """Return a JPEG file of ten scans, and more that repeat the last one."""
    content = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole.rindex(b"\xff\xda")
    return io.BytesIO(whole[:last] + whole[last:-2] * (1 + scans - 10) + whole[-2:])


def test_read_image_refuses_a_jpeg_of_too_many_scans():
    assert read_image(progressive_jpeg(100)).size == (32, 32)
    with pytest.raises(ValueError, match="more than 100 scans"):
        read_image(progressive_jpeg(101))


def test_read_image_counts_the_scans_of_the_first_image_only():
    other = progressive_jpeg(100)
    assert read_image(io.BytesIO(progressive_jpeg(10).getvalue() + other.getvalue())).size == (32, 32)
