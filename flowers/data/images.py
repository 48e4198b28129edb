"""Read image files of all supported formats as upright RGB, and check files before training."""

import errno
import hashlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

import imagehash
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from flowers.data.image_bombs import check_scans, limit_tags
from flowers.data.image_damage import find_damage
from flowers.data.pixels import PEAK, GrayBits, to_rgb
from flowers.data.raw_photos import check_not_raw
from flowers.runtime.files import cache_dir, cache_lock, chunk_by_time, open_regular, read_cache, write_cache
from flowers.runtime.logging import progress_bar
from flowers.runtime.machine_errors import is_memory_error
from flowers.runtime.memory_budget import MemoryBudget
from flowers.runtime.text import one_line

log = logging.getLogger(__name__)

# Pillow reads more formats. For some of them, such as EPS, it passes an untrusted file to another program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
READ_VERSION = 1  # raise it with every change of `read_image` that changes pixels: features are then computed again
MAX_PIXELS = 89_478_485  # unless a setting says so: the limit above which Pillow warns, a quarter of a GiB as RGB
MAX_FILE_BYTES = 2**29  # of an image file: about MAX_PIXELS of RGB with 16 bits, without compression
DECODE_BYTES = 2**30  # what all threads of the process together take to decode images

# The most that decoding takes, measured by the peak of the process. Pillow has 4 bytes for a pixel of most modes, and
# so has the result. A progressive JPEG has its coefficients beside them, an animated WebP two frames.
_PEAK_BYTES_PER_PIXEL = {"PNG": 9, "BMP": 9, "GIF": 9, "JPEG": 13, "MPO": 13, "TIFF": 13, "WEBP": 17}
# How files of these formats start.
_SIGNATURE = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG)|(?P<GIF>GIF8)|(?P<BMP>BM.{4}\0{4})|(?P<WebP>RIFF.{4}WEBP)|(?P<TIFF>II\*\0|MM\0\*)",
    re.DOTALL,
)
_decoding = MemoryBudget(DECODE_BYTES)
limit_tags()

_CHECKS_FORMAT = 3  # of the cached checks; another number makes all of them stale
_NAMES = {"MPO": "JPEG", "WEBP": "WebP"}  # of formats, where they are not those of Pillow
_CHUNK_BYTES = 1 << 20
_EMPTY_SHA256 = hashlib.sha256().hexdigest()
_MORE_MEMORY = "make it smaller, end other programs, or set fewer workers"
_MORE_PIXELS = ": make it smaller, or set a larger max_megapixels"
_HASH_SIZE = 16  # a perceptual hash has 16 x 16 bits


class ImageFileError(ValueError):
    """An image that can no longer be read, or is another one than before.

    The message is one line, also after a dataloader worker has raised the error again with its traceback as the text.
    """

    def __init__(self, text: str) -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(text.strip().rpartition("\n")[2].removeprefix(name))


class ImageMemoryError(ImageFileError, MemoryError):
    """There is not enough memory for an image. It is no fault of the file, which may be read another time."""


@runtime_checkable
class ImageBytes(Protocol):
    """An image that is not a file by itself, such as an image in a shard."""

    def content(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            ImageFileError: They cannot be read, or are not those that were packed.
        """


class ImageRoot(Protocol):
    """Where images are: the path of a folder, or an `ImageSource`."""

    def __truediv__(self, path: str, /) -> Path | ImageBytes:
        """Return the image with that path."""


def pixels_of(megapixels: float | None) -> int:
    """Return the pixels of a setting `max_megapixels`; None for MAX_PIXELS."""
    return MAX_PIXELS if megapixels is None else round(megapixels * 1e6)


def pixel_limit(root: ImageRoot) -> int:
    """Return the most pixels of an image at `root`: those of an `ImageSource`, or MAX_PIXELS."""
    limit: int = getattr(root, "max_pixels", MAX_PIXELS)
    return limit


class ImageCheck(NamedTuple):
    """The result of reading a file.

    Attributes:
        sha256: SHA-256 of the file, hexadecimal; empty if it cannot be opened.
        phash: Perceptual hash of the image, hexadecimal; empty if it cannot be read.
        reason: Why the image cannot be read; empty if it can.
        gray_peak: The largest value of grayscale of more than 8 bits, but for a thousandth of the pixels; 0 of others.
    """

    sha256: str
    phash: str
    reason: str
    gray_peak: int = 0


def read_image(
    source: str | Path | IO[bytes] | ImageBytes,
    max_pixels: int = MAX_PIXELS,
    is_checked: bool = False,
    bit_depth: GrayBits = "auto",
) -> Image.Image:
    """Return an image as RGB with 8 bits per channel, rotated as its EXIF tag says.

    Transparency becomes white. Grayscale of more than 8 bits is scaled to 8 bits. Of an animation, the first frame is
    read. All threads of the process together decode DECODE_BYTES at a time; whoever needs more waits until the others
    are done.

    Args:
        source: A path, an open binary file, or an image in a shard.
        max_pixels: The limit of width x height. A limit above MAX_PIXELS raises that of Pillow, for the process.
        is_checked: Whether the same bytes were read before, so that damage that Pillow does not find is not looked for.
        bit_depth: Of grayscale of more than 8 bits; see `flowers.settings.preprocessing.Preprocessing`.

    Raises:
        ImageMemoryError: There is not enough memory.
        ValueError: For more than `max_pixels` pixels or MAX_FILE_BYTES bytes; for a damaged file or a raw photo.
        OSError: For a file that cannot be opened or read, or is not a regular file, or not an image.
    """
    if isinstance(source, (str, Path)):
        with named_memory_error(source), _open_image(source) as file:
            return _decode(file, max_pixels, is_checked, bit_depth)
    file = io.BytesIO(source.content()) if isinstance(source, ImageBytes) else source
    return _decode(file, max_pixels, is_checked, bit_depth)


def _decode(file: IO[bytes], max_pixels: int, is_checked: bool, bit_depth: GrayBits) -> Image.Image:
    if not file.seekable():
        file = io.BytesIO(file.read(MAX_FILE_BYTES + 1))
    file_bytes = file.seek(0, os.SEEK_END)
    _check_size(file_bytes)
    check_not_raw(file)
    with _open_format(file, max_pixels) as image:
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise ValueError(f"{size}, over the limit of {max_pixels:,}{_MORE_PIXELS}")
        # Some decoders copy the whole file.
        needed = file_bytes + image.width * image.height * _PEAK_BYTES_PER_PIXEL[str(image.format)]
        with _decoding.share(needed):
            try:
                if "progressive" in image.info:
                    check_scans(file)
                _load(image, file, is_checked)
                ImageOps.exif_transpose(image, in_place=True)
                return to_rgb(image, bit_depth)
            except Exception as error:
                if not is_memory_error(error):
                    raise
                size = f"{image.width} x {image.height} pixels, which take up to {needed / 1e6:,.0f} MB"
                raise ImageMemoryError(f"not enough memory to decode {size}: {_MORE_MEMORY}") from error


def _open_format(file: IO[bytes], max_pixels: int) -> ImageFile.ImageFile:
    """Read the header of an image file.

    Raises:
        UnidentifiedImageError: It is of none of IMAGE_FORMATS.
        ValueError: It starts as one of them, and goes on in another way, or has far more than `max_pixels` pixels.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        return Image.open(file, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"over the limit of {max_pixels:,} pixels{_MORE_PIXELS}") from error
    except OSError as error:
        file.seek(0)
        if error.errno or is_memory_error(error) or (found := _SIGNATURE.match(file.read(16))) is None:
            raise
        raise ValueError(f"a damaged {found.lastgroup}: its header cannot be read") from error


def _load(image: ImageFile.ImageFile, file: IO[bytes], is_checked: bool) -> None:
    """Decode the pixels of an image.

    Raises:
        ValueError: The file is damaged, with what is lost as far as that is known.
    """
    kind, failure = str(image.format), None
    try:
        image.load()
    except Exception as error:  # on a damaged file, Pillow raises anything from EOFError to struct.error
        if is_memory_error(error) or isinstance(error, (ValueError, Image.DecompressionBombError, Warning)):
            raise
        failure = error
    if is_checked and failure is None:
        return
    file.seek(0)
    loss = find_damage(file.read(), kind, image.mode)
    if loss or failure:
        reasons = ([read_error_reason(failure)] if failure else []) + ([loss] if loss else [])
        raise ValueError(f"a damaged {_NAMES.get(kind, kind)}: {', '.join(reasons)}") from failure


def _open_image(path: str | Path) -> IO[bytes]:
    """Open an image file.

    Raises:
        OSError: It is no regular file, or cannot be opened.
        ValueError: It has more than MAX_FILE_BYTES bytes.
    """
    file = open_regular(path)
    try:
        _check_size(os.fstat(file.fileno()).st_size)
    except BaseException:
        file.close()
        raise
    return file


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} bytes, over the limit of {MAX_FILE_BYTES:,}")


def image_sha256(path: str | Path) -> str:
    """Return the SHA-256 of an image file, hexadecimal, if it is a regular file of at most MAX_FILE_BYTES bytes."""
    with _open_image(path) as file:
        return _sha256(file)


def _sha256(file: IO[bytes]) -> str:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        size += len(chunk)
        _check_size(size)  # another process may append to it
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def named_memory_error(name: str | Path) -> Iterator[None]:
    """Raise ImageMemoryError with the name of an image if the block has not enough memory for it."""
    try:
        yield
    except Exception as error:
        if not is_memory_error(error):
            raise
        reason = str(error) if isinstance(error, ImageMemoryError) else f"not enough memory: {_MORE_MEMORY}"
        start = f"{one_line(name)}: "
        raise ImageMemoryError(start + reason.removeprefix(start)) from error


def read_unchanged(path: Path, sha256: str) -> bytes:
    """Return the content of an image file that was checked before.

    Raises:
        ImageFileError: It has been deleted or changed since, with its name.
    """
    again = "restore it, or start a new run"
    try:
        with named_memory_error(path), _open_image(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except ImageMemoryError:
        raise
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{one_line(path)} {read_error_reason(error)}, but was checked before: {again}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ImageFileError(f"{one_line(path)} has changed since it was checked: {again}")
    return content


def read_error_reason(error: Exception) -> str:
    """Return in a few words, without a path, why `read_image` has raised `error`."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
    if isinstance(error, OSError) and error.strerror:
        is_irregular = error.errno == errno.EINVAL  # of `open_regular`
        return error.strerror if is_irregular else f"cannot be opened ({error.strerror})"
    return one_line(" ".join(str(error).split())) or type(error).__name__


def check_images(root: str | Path, files: Sequence[str], max_pixels: int = MAX_PIXELS) -> dict[str, ImageCheck]:
    """Read each of `files` completely, in parallel.

    The results are cached by path, size and modification time, so that a second call reads only new and changed files.
    If another process checks the same folder, wait for it.

    Args:
        root: The folder.
        files: Paths below `root`.
        max_pixels: Images with more cannot be read.

    Returns:
        The result for each path.
    """
    root = Path(root).resolve()
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16] + (f"-{max_pixels}" if max_pixels != MAX_PIXELS else "")
    cache = cache_dir() / "verdicts" / name
    waiting = f"another process checks the images in {one_line(root)}: waiting for it"
    with cache_lock(cache.with_name(f".{cache.name}.lock"), waiting):
        checks = _check_new_files(root, files, cache, max_pixels)
    return {file: ImageCheck(*checks[file][1:]) for file in files}


def _check_new_files(root: Path, files: Sequence[str], cache: Path, max_pixels: int) -> dict[str, list[Any]]:
    checks = _load_checks(cache)
    states = {file: _file_state(f"{root}/{file}") for file in files}  # a path object takes longer than the question
    new = [file for file in files if checks.get(file, [None])[0] != states[file]]
    if new:
        log.info("checking %d files in %s", len(new), one_line(root))
        is_writable = True
        # Threads suffice: Pillow and hashlib release the interpreter lock while they decode and digest. The filter is
        # set here, because all threads share it. What Pillow warns of, such as a damaged EXIF tag, costs no pixels.
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            results = progress_bar(
                pool.map(lambda file: _check_file(root / file, max_pixels), new), "Checking images", len(new)
            )
            for chunk in chunk_by_time(zip(new, results, strict=True)):
                checks |= {file: [states[file], *result] for file, result in chunk}
                # A file that could not be opened may be readable later with the same size and modification time.
                lasting = {file: check for file, check in checks.items() if check[1]}
                content = {"format": _CHECKS_FORMAT, "root": str(root), "verdicts": lasting}
                is_writable = is_writable and write_cache(cache, json.dumps(content).encode())
    return checks


def _load_checks(path: Path) -> dict[str, list[Any]]:
    """Return the cached checks `{path: [state, *check]}`; none if the file is missing or damaged."""
    content = json.loads(read_cache(path) or "{}")
    return dict(content["verdicts"]) if content.get("format") == _CHECKS_FORMAT else {}


def _file_state(path: str) -> str:
    """Return the size and modification time of a file."""
    try:
        status = os.stat(path)  # noqa: PTH116  # see its caller
    except OSError as error:  # a broken link, or a file that was deleted after it was listed
        return f"{error.strerror}"
    return f"{status.st_size} {status.st_mtime_ns}"


def _check_file(path: Path, max_pixels: int) -> ImageCheck:
    try:
        file = _open_image(path)
    except (OSError, ValueError) as error:
        return ImageCheck("", "", read_error_reason(error))
    with file, named_memory_error(path):
        try:
            digest = _sha256(file)
        except (OSError, ValueError) as error:
            return ImageCheck("", "", read_error_reason(error))
        if digest == _EMPTY_SHA256:
            return ImageCheck(digest, "", "empty")
        try:
            image = read_image(file, max_pixels)
            return ImageCheck(digest, str(imagehash.phash(image, hash_size=_HASH_SIZE)), "", image.info.get(PEAK, 0))
        except Exception as error:  # damaged files make Pillow raise anything from EOFError to struct.error
            if is_memory_error(error):
                raise
            return ImageCheck(digest, "", read_error_reason(error))
