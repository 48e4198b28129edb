import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from flowers.data.images import (
    DECODE_BYTES,
    ImageFileError,
    ImageMemoryError,
    check_images,
    image_sha256,
    named_memory_error,
    read_image,
    read_unchanged,
)

RED_OVER_BLUE = np.zeros((40, 60, 3), np.uint8)
RED_OVER_BLUE[:20, :, 0] = RED_OVER_BLUE[20:, :, 2] = 255


def top_and_bottom(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pixels = np.asarray(image)
    return tuple(pixels[5, 5].tolist()), tuple(pixels[-5, -5].tolist())


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif"])
def test_read_image_reads_each_format_as_rgb(tmp_path: Path, name: str):
    Image.fromarray(RED_OVER_BLUE).save(tmp_path / name)
    top, bottom = top_and_bottom(read_image(tmp_path / name))
    assert np.abs(np.subtract(top, (255, 0, 0))).max() < 10
    assert np.abs(np.subtract(bottom, (0, 0, 255))).max() < 10


def test_read_image_rotates_by_the_exif_tag(tmp_path: Path):
    rotated = Image.fromarray(RED_OVER_BLUE).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise"
    rotated.save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.size == (60, 40)
    assert top_and_bottom(upright) == ((255, 0, 0), (0, 0, 255))


def test_read_image_scales_sixteen_bits_and_does_not_clip_them(tmp_path: Path):
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (8, 1))).save(tmp_path / "a.png")
    row = np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].astype(int)
    assert np.abs(row - np.arange(256)).max() <= 1


def test_read_image_makes_transparency_white(tmp_path: Path):
    palette = Image.fromarray(RED_OVER_BLUE).quantize(4)
    palette.save(tmp_path / "a.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "a.png").getpixel((5, 5)) == (255, 255, 255)


def test_read_image_converts_cmyk_and_grayscale_to_rgb(tmp_path: Path):
    Image.fromarray(RED_OVER_BLUE).convert("CMYK").save(tmp_path / "c.jpg")
    Image.fromarray(RED_OVER_BLUE).convert("L").save(tmp_path / "l.jpg")
    top, _ = top_and_bottom(read_image(tmp_path / "c.jpg"))
    assert np.abs(np.subtract(top, (255, 0, 0))).max() < 10
    assert read_image(tmp_path / "l.jpg").mode == "RGB"


def test_read_image_reads_the_first_frame_of_an_animation(tmp_path: Path):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((10, 10)) == (255, 0, 0)


def test_read_image_does_not_open_a_format_that_could_run_a_program(tmp_path: Path):
    Image.fromarray(RED_OVER_BLUE).save(tmp_path / "a.eps")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "a.eps")


def write_bad_files(folder: Path, good: Image.Image) -> list[str]:
    good.save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image", encoding="utf-8")
    (folder / "away.jpg").symlink_to(folder / "nowhere.jpg")
    return ["truncated.jpg", "empty.jpg", "text.jpg", "away.jpg"]


def test_check_images_gives_the_reason_for_each_bad_file(tmp_path: Path, photo):
    checks = check_images(tmp_path, ["whole.jpg", *write_bad_files(tmp_path, photo(0))])
    reasons = {path: check.reason for path, check in checks.items()}
    assert reasons.pop("whole.jpg") == ""
    assert "truncated" in reasons["truncated.jpg"]
    assert reasons["empty.jpg"] == "empty"
    assert "not a JPEG" in reasons["text.jpg"]
    assert "No such file" in reasons["away.jpg"]


def test_check_images_refuses_a_decompression_bomb_without_decoding_it(tmp_path: Path):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "bomb.png")
    Image.new("1", (10_000, 9_500)).save(tmp_path / "large.png")
    checks = check_images(tmp_path, ["bomb.png", "large.png"])
    assert all("over the limit" in check.reason for check in checks.values())


def test_check_images_reads_only_changed_files_on_a_second_call(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        photo(number).save(tmp_path / f"{number}.png")
    files = ["0.png", "1.png", "2.png"]
    first = check_images(tmp_path, files)
    (tmp_path / "1.png").write_bytes(b"")

    monkeypatch.setattr("flowers.data.images.read_image", None)  # not needed for an empty file
    second = check_images(tmp_path, files)
    assert second["0.png"] == first["0.png"]
    assert second["1.png"].reason == "empty"


def test_check_images_resumes_after_an_interruption(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    files = [f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        photo(number).save(tmp_path / file)
    read, last = read_image, (tmp_path / files[3]).read_bytes()

    def interrupt(file: IO[bytes], max_pixels: int) -> Image.Image:
        file.seek(0)
        if file.read() == last:
            raise KeyboardInterrupt
        return read(file, max_pixels)

    monkeypatch.setattr("flowers.runtime.files.CHUNK_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("flowers.data.images.read_image", interrupt)
        with pytest.raises(KeyboardInterrupt):
            check_images(tmp_path, files)

    for file in files[:3]:  # the same size and modification time, but no image: it must not be read again
        status, path = (tmp_path / file).stat(), tmp_path / file
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [check.reason for check in check_images(tmp_path, files).values()] == [""] * 4


def test_check_images_tries_a_file_again_that_could_not_be_opened(
    tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch
):
    photo(0).save(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        assert "Permission denied" in check_images(tmp_path, ["a.png"])["a.png"].reason
    assert check_images(tmp_path, ["a.png"])["a.png"].reason == ""


@pytest.fixture
def verdicts(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the cached checks of a folder `images` with one image, which has been checked."""
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    photo(0).save(tmp_path / "images" / "a.png")
    check_images(tmp_path / "images", ["a.png"])
    (file,) = (tmp_path / "cache" / "verdicts").glob("[!.]*")
    return file


def damage(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "bit":
        content[content.index(b'"a.png": ["') + 80] ^= 1  # in the digest of the image
        file.write_bytes(content)
    elif kind == "folder":
        file.unlink()
        (file / "something").mkdir(parents=True)
    else:
        file.write_bytes({"text": b"{half a", "empty": b"", "cut": bytes(content[:-5])}[kind])


@pytest.mark.parametrize("kind", ["bit", "text", "empty", "cut", "folder"])
def test_check_images_makes_damaged_checks_again(
    tmp_path: Path, verdicts: Path, kind: str, caplog: pytest.LogCaptureFixture
):
    content = verdicts.read_bytes()
    first = check_images(tmp_path / "images", ["a.png"])
    damage(verdicts, kind)
    assert check_images(tmp_path / "images", ["a.png"]) == first
    assert caplog.text.count(f"{verdicts} is damaged") == 1
    assert verdicts.read_bytes() == content


def test_check_images_reads_a_cache_that_it_cannot_write(
    tmp_path: Path, verdicts: Path, photo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    photo(1).save(tmp_path / "images" / "b.png")
    for name in ("filelock.FileLock.acquire", "pathlib.Path.mkdir", "pathlib.Path.write_bytes", "os.utime"):
        monkeypatch.setattr(name, refuse)
    read = list[IO[bytes]]()

    def count(file: IO[bytes], max_pixels: int) -> Image.Image:
        read.append(file)
        return read_image(file, max_pixels)

    monkeypatch.setattr("flowers.data.images.read_image", count)
    checks = check_images(tmp_path / "images", ["a.png", "b.png"])
    assert all(check.phash for check in checks.values())
    assert len(read) == 1
    assert caplog.text.count("Read-only file system") == 1


def test_check_images_prints_no_warning_of_pillow_and_takes_such_files(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    Image.fromarray(RED_OVER_BLUE).quantize(4).save(tmp_path / "palette.png", transparency=b"\0\x80\xff\xff")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x0e\0\x02\0\0\0\x40\0\0\xff\0"
    Image.fromarray(RED_OVER_BLUE).save(tmp_path / "exif.jpg", exif=exif)
    with pytest.warns(UserWarning, match="Truncated File Read|Tag data larger|Corrupt EXIF"):
        read_image(tmp_path / "exif.jpg")
    recwarn.clear()
    assert {check.reason for check in check_images(tmp_path, ["palette.png", "exif.jpg"]).values()} == {""}
    assert not recwarn.list


def test_image_file_error_of_a_worker_is_one_line():
    error = ImageFileError(
        "Caught ImageFileError in a worker.\nTraceback:\nflowers.data.images.ImageFileError: a.jpg has changed"
    )
    assert str(error) == "a.jpg has changed"


def make_irregular(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(40 * 2**30)  # without a block on the disk


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "sparse"])
def test_every_reader_refuses_what_is_no_file_of_a_photo(tmp_path: Path, kind: str):
    make_irregular(kind, tmp_path / "a.jpg")
    reason = {"sparse": "over the limit of 536,870,912", "folder": "Is a directory"}.get(kind, "not a regular file")
    assert reason in check_images(tmp_path, ["a.jpg"])["a.jpg"].reason
    readers = (read_image, image_sha256, lambda path: read_unchanged(path, "0" * 64))
    for read in readers:
        with pytest.raises((OSError, ValueError), match=reason):
            read(tmp_path / "a.jpg")


def test_read_image_takes_a_link_to_a_photo(tmp_path: Path, photo):
    photo(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert read_image(tmp_path / "b.png").tobytes() == photo(0).tobytes()


def test_read_image_refuses_more_pixels_than_asked_for(tmp_path: Path):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=200).size == (20, 10)
    with pytest.raises(ValueError, match="20 x 10 pixels, over the limit of 199"):
        read_image(tmp_path / "a.png", max_pixels=199)


@pytest.fixture
def low_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of an image of 200 pixels, where Pillow warns of more than 50, and refuses more than 100."""
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.setattr("flowers.data.images.MAX_PIXELS", 50)
    return tmp_path


def test_read_image_takes_more_pixels_than_pillow_does_where_the_limit_is_raised(low_limit: Path):
    with pytest.raises(ValueError, match=r"over the limit of 50 pixels: .* set a larger max_megapixels"):
        read_image(low_limit / "a.png", 50)
    assert read_image(low_limit / "a.png", 200).size == (20, 10)
    with pytest.raises(ValueError, match="20 x 10 pixels, over the limit of 50: "):  # also after Pillow takes more
        read_image(low_limit / "a.png", 50)


def test_check_images_keeps_the_result_of_each_limit(low_limit: Path):
    for _ in range(2):
        assert "over the limit" in check_images(low_limit, ["a.png"], 50)["a.png"].reason
        assert check_images(low_limit, ["a.png"], 200)["a.png"].reason == ""


def test_read_image_reads_a_stream_that_cannot_seek(photo):
    content = io.BytesIO()
    photo(0).save(content, "PNG")
    source, target = os.pipe()
    with open(target, "wb") as writer, open(source, "rb") as reader:  # noqa: PTH123
        writer.write(content.getvalue())
        writer.close()
        assert read_image(reader).tobytes() == photo(0).tobytes()


PEAK = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from flowers.data.images import read_image
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def size(path): return read_image(path).size
before = peak()
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    sizes = set(pool.map(size, [sys.argv[1]] * int(sys.argv[2])))
print(sizes.pop()[0], peak() - before)
"""


@pytest.mark.parametrize(
    ("file_format", "mode", "options", "per_pixel"),
    [
        ("PNG", "I;16", {}, 6),
        ("PNG", "RGBA", {}, 8),
        ("PNG", "P", {"transparency": bytes(256)}, 5),
        ("TIFF", "F", {}, 8),
        ("TIFF", "CMYK", {"compression": "tiff_adobe_deflate"}, 8),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}, 10),
        ("WEBP", "RGB", {"method": 0}, 16),
    ],
)
def test_read_image_takes_little_memory_in_every_format(
    tmp_path: Path, file_format: str, mode: str, options: dict[str, object], per_pixel: int
):
    side = 3000
    Image.new(mode, (side, side)).save(tmp_path / "a", file_format, **options)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "a", "1"], capture_output=True, text=True, check=True
    )
    assert int(found.stdout.split()[1]) < per_pixel * side**2 + (tmp_path / "a").stat().st_size + 24e6


@pytest.mark.slow
def test_read_image_decodes_no_more_at_a_time_than_all_threads_may(tmp_path: Path):
    Image.new("I;16", (8000, 8000)).save(tmp_path / "a.png")
    found = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "a.png", "6"], capture_output=True, text=True, check=True
    )
    assert int(found.stdout.split()[1]) < DECODE_BYTES  # 6 x 6 bytes x 64 million pixels are 2.3 GB


def test_a_memory_error_names_the_photo_and_is_no_verdict_on_it(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> Image.Image:
        raise MemoryError

    photo(0).save(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr("flowers.data.images.to_rgb", fail)
        for read in (lambda: read_image(tmp_path / "a.png"), lambda: check_images(tmp_path, ["a.png"])):
            with pytest.raises(ImageMemoryError, match=r"a\.png: not enough memory to decode .* pixels") as caught:
                read()
            assert "\n" not in str(caught.value)
    assert check_images(tmp_path, ["a.png"])["a.png"].reason == ""


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("out of memory when reading image file"), RuntimeError("can't allocate memory: 9")]
)
def test_named_memory_error_names_a_photo_once(error: Exception):
    match = r"^a\.jpg: not enough memory: make it smaller"
    with pytest.raises(ImageMemoryError, match=match), named_memory_error("a.jpg"), named_memory_error("a.jpg"):
        raise error


def test_named_memory_error_leaves_other_errors():
    with pytest.raises(ZeroDivisionError), named_memory_error("a.jpg"):
        raise ZeroDivisionError
