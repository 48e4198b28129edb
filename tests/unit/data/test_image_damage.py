import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers.data.image_damage import find_damage
from flowers.data.images import check_images, read_image

KINDS: list[dict[str, Any]] = [
    {},
    {"optimize": True},
    {"progressive": True},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 3},
    {"subsampling": 0},
    {"mode": "L"},
    {"mode": "CMYK"},
]
END = b"\xff\xd9"


def encoded(
    seed: int = 0, form: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (160, 120), **options
) -> bytes:
    grain = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(grain).resize(size, Image.Resampling.BICUBIC).convert(mode).save(content, form, **options)
    return content.getvalue()


def pixels_at(content: bytes) -> int:
    """Return where the pixels of a JPEG file begin."""
    position = 2
    while content[position + 1] != 0xDA:
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")


def cut_of(content: bytes, share: float) -> int:
    start = pixels_at(content)
    return start + int(share * (len(content) - 2 - start))


def reason(content: bytes) -> str:
    try:
        read_image(io.BytesIO(content))
    except ValueError as error:
        return str(error)
    return ""


@given(st.sampled_from(KINDS), st.integers(0, 99), st.sampled_from([50, 75, 90, 100]), st.floats(0.05, 0.8))
def test_read_image_refuses_a_jpeg_whose_end_is_lost(kind: dict[str, Any], seed: int, quality: int, share: float):
    content = encoded(seed, quality=quality, **kind)
    cut = cut_of(content, share)
    assert not reason(content)
    zeros = content[:cut] + bytes(len(content) - cut - 2) + END
    for damaged in (zeros, content[:cut] + END, content[:cut], content[:cut] + bytes(len(content) - cut)):
        assert reason(damaged).startswith("a damaged JPEG: ")
        assert "lost" in reason(damaged)


def test_read_image_names_the_share_that_is_lost():
    content = encoded(size=(400, 400), quality=90)
    image = np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(int)
    for share in (0.2, 0.5, 0.9):
        cut = cut_of(content, share)
        damaged = content[:cut] + END
        rows = (abs(np.asarray(Image.open(io.BytesIO(damaged)).convert("L")) - image) > 8).any(1)
        lost = 1 - rows.argmax() / len(rows)
        for each in (damaged, content[:cut] + bytes(900) + END):
            named = int(reason(each).rpartition("about ")[2].partition("%")[0]) / 100
            assert named == pytest.approx(lost, abs=0.06)


@given(st.sampled_from(KINDS), st.integers(0, 99), st.sampled_from([30, 75, 95]), st.binary(max_size=2000))
def test_read_image_takes_a_whole_jpeg_with_bytes_around_it(kind: dict[str, Any], seed: int, quality: int, more: bytes):
    content = encoded(seed, quality=quality, **kind)
    thumbnail = encoded(seed + 1, size=(16, 12))
    embedded = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    fillers = [bytes(1), bytes(600), b"\xff" * 40, b"\x11\x22"]
    filled = [content[:-2] + filler + END for filler in fillers]
    for whole in (content + more, content + content, content[:2] + embedded + content[2:], *filled):
        assert reason(whole) == ""


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 3), (64, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_read_image_takes_jpegs_of_one_color(size: tuple[int, int], kind: dict[str, Any]):
    options = dict(kind)
    content = io.BytesIO()
    Image.new("RGB", size, "white").convert(options.pop("mode", "RGB")).save(content, "JPEG", **options)
    assert reason(content.getvalue()) == ""


def test_read_image_refuses_a_progressive_jpeg_without_its_last_scans():
    content = encoded(progressive=True, quality=90)
    scans = [place for place in range(len(content)) if content.startswith(b"\xff\xda", place)]
    for last in scans[1:]:
        assert "lost" in reason(content[:last] + END)


def test_read_image_does_not_look_for_damage_in_what_was_checked():
    content = encoded()
    damaged = content[: cut_of(content, 0.5)] + END
    assert read_image(io.BytesIO(damaged), is_checked=True).size == (160, 120)


def chunk(name: bytes, content: bytes, error: int = 0) -> bytes:
    checksum = zlib.crc32(name + content) ^ error
    return len(content).to_bytes(4, "big") + name + content + checksum.to_bytes(4, "big")


def test_read_image_calls_a_damaged_png_so():
    whole = encoded(form="PNG")
    note = chunk(b"tEXt", b"a\0b", error=1)
    assert reason(whole[:33] + note + whole[33:]).startswith("a damaged PNG: ")
    assert reason(whole[:33] + chunk(b"tEXt", b"a\0b") + whole[33:]) == ""
    wrong = bytearray(whole)
    wrong[-17] ^= 1  # in the checksum of the pixels
    assert "a damaged PNG: " in reason(bytes(wrong))


@settings(max_examples=30)
@given(
    st.sampled_from([("PNG", {}), ("GIF", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {})]),
    st.floats(0.1, 0.9),
)
def test_read_image_calls_a_cut_file_damaged(kind: tuple[str, dict[str, Any]], share: float):
    content = encoded(form=kind[0], **kind[1])
    assert reason(content) == ""
    assert reason(content[: max(16, int(share * len(content)))]).upper().startswith(f"A DAMAGED {kind[0]}: ")


@settings(max_examples=20)
@given(st.sampled_from([("PNG", {}), ("WEBP", {"quality": 90}), ("WEBP", {"lossless": True})]), st.floats(0.2, 0.7))
def test_read_image_finds_an_end_of_zeros_where_the_format_allows_it(kind: tuple[str, dict[str, Any]], share: float):
    content = encoded(form=kind[0], size=(240, 180), **kind[1])
    cut = int(share * len(content))
    assert "damaged" in reason(content[:cut] + bytes(len(content) - cut))


@pytest.mark.parametrize("color", ["white", "black"])
def test_find_damage_takes_a_large_webp_of_one_color(color: str):
    content = io.BytesIO()
    Image.new("RGB", (1200, 900), color).save(content, "WEBP")
    assert find_damage(content.getvalue(), "WEBP", "RGB") == ""


def test_check_images_names_damage(tmp_path, photo: Callable[..., Image.Image]):
    photo(0).save(tmp_path / "a.jpg", quality=90)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(content[: cut_of(content, 0.3)] + END)
    checks = check_images(tmp_path, ["a.jpg", "b.jpg"])
    assert checks["a.jpg"].reason == ""
    assert "a damaged JPEG: about" in checks["b.jpg"].reason
