import io
import struct

import pytest
from PIL import Image, TiffImagePlugin

from flowers.data.images import read_image

NEW_SUBFILE_TYPE, MAKE, SUB_IFDS, DNG_VERSION = 254, 271, 330, 50706


def tiff(tags: dict[int, object], form: str = "TIFF", **options) -> io.BytesIO:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[name] = value
        if isinstance(value, bytes):
            directory.tagtype[name] = 1
    content = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(content, form, tiffinfo=directory, **options)
    return content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Fujifilm RAF", b"FUJIFILMCCD-RAW 0201"),
        ("Olympus ORF", b"IIRO\x08\0\0\0"),
        ("Olympus ORF", b"MMOR\0\0\0\x08"),
        ("Panasonic RW2", b"IIU\0\x18\0\0\0"),
        ("Canon CR3", b"\0\0\0\x18ftypcrx \0\0\0\x01"),
        ("Canon CR2", b"II*\0\x10\0\0\0CR\x02\0"),
        ("Canon CRW", b"II\x1a\0\0\0HEAPCCDR"),
        ("Sigma X3F", b"FOVb\0\0\0\0"),
        ("Minolta MRW", b"\0MRM\0\0\0\0"),
        ("Phase One IIQ", b"II*\0\x08\0\0\0IIIITwaR"),
    ],
)
def test_read_image_names_a_raw_photo_by_its_first_bytes(name: str, content: bytes):
    with pytest.raises(ValueError, match=rf"a raw photo \({name}\).*convert it to JPEG"):
        read_image(io.BytesIO(content + bytes(100)))


@pytest.mark.parametrize(
    ("maker", "name"),
    [
        ("NIKON CORPORATION", "Nikon NEF"),
        ("SONY", "Sony ARW"),
        ("PENTAX", "Pentax PEF"),
        ("SAMSUNG", "Samsung SRW"),
        ("Unknown", "its first image is a thumbnail"),
    ],
)
def test_read_image_names_a_raw_photo_by_its_tags(maker: str, name: str):
    content = tiff({NEW_SUBFILE_TYPE: 1, MAKE: maker, SUB_IFDS: 8})
    with pytest.raises(ValueError, match=rf"a raw photo \({name}\)"):
        read_image(content)


@pytest.mark.parametrize("tags", [{}, {NEW_SUBFILE_TYPE: 1}])
def test_read_image_refuses_a_dng(tags: dict[int, object]):
    with pytest.raises(ValueError, match=r"a raw photo \(DNG\)"):
        read_image(tiff({**tags, DNG_VERSION: bytes([1, 4, 0, 0])}))


def test_read_image_refuses_a_tiff_whose_pixels_are_those_of_a_sensor():
    entries = struct.pack("<HHHLL", 2, 262, 3, 1, 32803) + struct.pack("<HHL8s", 271, 2, 8, struct.pack("<L", 38))
    content = b"II*\0" + struct.pack("<L", 8) + entries + bytes(4) + b"PENTAX \0"
    with pytest.raises(ValueError, match="a raw photo"):
        read_image(io.BytesIO(content))


@pytest.mark.parametrize(
    "tags",
    [{}, {NEW_SUBFILE_TYPE: 0, SUB_IFDS: 8}, {NEW_SUBFILE_TYPE: 1}, {NEW_SUBFILE_TYPE: 2}, {MAKE: "NIKON CORPORATION"}],
)
def test_read_image_takes_an_ordinary_tiff(tags: dict[int, object]):
    assert read_image(tiff(tags)).getpixel((5, 5)) == (255, 0, 0)


def test_read_image_takes_the_first_page_of_a_tiff():
    pages = io.BytesIO()
    others = [Image.new("RGB", (8, 6), "blue")]
    Image.new("RGB", (16, 12), "red").save(pages, "TIFF", save_all=True, append_images=others)
    assert read_image(pages).size == (16, 12)


def test_read_image_takes_a_big_tiff():
    assert read_image(tiff({}, big_tiff=True)).size == (16, 12)
