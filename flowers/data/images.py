"""Read image files of all supported formats as upright RGB, and check files before training."""

import hashlib
import io
import json
import logging
import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, Protocol, runtime_checkable

import imagehash
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flowers.runtime.files import cache_dir, cache_lock, chunk_by_time, read_cache, write_cache
from flowers.runtime.logging import progress_bar
from flowers.runtime.text import one_line

log = logging.getLogger(__name__)

# Pillow reads more formats. For some of them, such as EPS, it passes an untrusted file to another program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
READ_VERSION = 1  # raise it with every change of `read_image` that changes pixels: features are then computed again
MAX_PIXELS = 89_478_485  # the limit above which Pillow warns: a quarter of a GiB as RGB

_CHECKS_FORMAT = 1  # of the cached checks; another number makes all of them stale
_NOT_REGULAR = "not a regular file"
_HASH_SIZE = 16  # a perceptual hash has 16 x 16 bits


class ImageFileError(ValueError):
    """An image that can no longer be read, or is another one than before.

    The message is one line, also after a dataloader worker has raised the error again with its traceback as the text.
    """

    def __init__(self, text: str) -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(text.strip().rpartition("\n")[2].removeprefix(name))


@runtime_checkable
class ImageBytes(Protocol):
    """An image that is not a file by itself, such as an image in a shard."""

    def content(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            ImageFileError: They cannot be read, or are not those that were packed.
        """


class ImageRoot(Protocol):
    """Where images are: the path of a folder, an `ImageFolderSource` or a `ShardSource`."""

    def __truediv__(self, path: str, /) -> Path | ImageBytes:
        """Return the image with that path."""


class ImageCheck(NamedTuple):
    """The result of reading a file.

    Attributes:
        sha256: SHA-256 of the file, hexadecimal; empty if it cannot be opened.
        phash: Perceptual hash of the image, hexadecimal; empty if it cannot be read.
        reason: Why the image cannot be read; empty if it can.
    """

    sha256: str
    phash: str
    reason: str


def read_image(path: str | Path | IO[bytes] | ImageBytes) -> Image.Image:
    """Return an image as RGB with 8 bits per channel, rotated as its EXIF tag says.

    Transparency becomes white. Grayscale of 16 bits is scaled to 8 bits. Of an animation, the first frame is read.

    Raises:
        ValueError: For more than MAX_PIXELS pixels.
        OSError: For a file that cannot be opened or read; for damaged files, Pillow raises various other exceptions.
    """
    if isinstance(path, (str, Path)):
        _check_regular(Path(path))
    file = io.BytesIO(path.content()) if isinstance(path, ImageBytes) else path
    with Image.open(file, formats=IMAGE_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, over the limit of {MAX_PIXELS:,}")
        image.load()
        return to_upright_rgb(image)


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB with 8 bits per channel, rotated as its EXIF tag says."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grayscale of more than 8 bits from the range of its type, or for floats from the range of its values."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode == "F":
        low, high = values.min(), values.max()
    else:
        low, high = 0.0, 65_535.0 if values.max() > 255 else 255.0
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def read_unchanged(path: Path, sha256: str) -> bytes:
    """Return the content of an image file that was checked before.

    Raises:
        ImageFileError: It has been deleted or changed since, with its name.
    """
    again = "restore it, or start a new run"
    try:
        content = _read_regular(path)
    except OSError as error:
        raise ImageFileError(f"{one_line(path)} {read_error_reason(error)}, but was checked before: {again}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ImageFileError(f"{one_line(path)} has changed since it was checked: {again}")
    return content


def _read_regular(path: Path) -> bytes:
    _check_regular(path)
    return path.read_bytes()


def _check_regular(path: Path) -> None:
    """Raise OSError for a FIFO, on which opening waits for a writer, a device, which may have no end, and a socket."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(_NOT_REGULAR)


def read_error_reason(error: Exception) -> str:
    """Return in a few words, without a path, why `read_image` has raised `error`."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"over the limit of {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    return one_line(" ".join(str(error).split())) or type(error).__name__


def check_images(root: str | Path, files: Sequence[str]) -> dict[str, ImageCheck]:
    """Read each of `files` completely, in parallel.

    The results are cached by path, size and modification time, so that a second call reads only new and changed files.
    If another process checks the same folder, wait for it.

    Args:
        root: The folder.
        files: Paths below `root`.

    Returns:
        The result for each path.
    """
    root = Path(root).resolve()
    cache = cache_dir() / "verdicts" / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    waiting = f"another process checks the images in {one_line(root)}: waiting for it"
    with cache_lock(cache.with_name(f".{cache.name}.lock"), waiting):
        checks = _check_new_files(root, files, cache)
    return {file: ImageCheck(*checks[file][1:]) for file in files}


def _check_new_files(root: Path, files: Sequence[str], cache: Path) -> dict[str, list[str]]:
    checks = _load_checks(cache)
    states = {file: _file_state(root / file) for file in files}
    new = [file for file in files if checks.get(file, [None])[0] != states[file]]
    if new:
        log.info("checking %d files in %s", len(new), one_line(root))
        is_writable = True
        # Threads suffice: Pillow and hashlib release the interpreter lock while they decode and digest. The filter is
        # set here, because all threads share it. What Pillow warns of, such as a damaged EXIF tag, costs no pixels.
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            results = progress_bar(pool.map(lambda file: _check_file(root / file), new), "Checking images", len(new))
            for chunk in chunk_by_time(zip(new, results, strict=True)):
                checks |= {file: [states[file], *result] for file, result in chunk}
                # A file that could not be opened may be readable later with the same size and modification time.
                lasting = {file: check for file, check in checks.items() if check[1]}
                content = {"format": _CHECKS_FORMAT, "root": str(root), "verdicts": lasting}
                is_writable = is_writable and write_cache(cache, json.dumps(content).encode())
    return checks


def _load_checks(path: Path) -> dict[str, list[str]]:
    """Return the cached checks `{path: [state, sha256, phash, reason]}`; none if the file is missing or damaged."""
    content = json.loads(read_cache(path) or "{}")
    return dict(content["verdicts"]) if content.get("format") == _CHECKS_FORMAT else {}


def _file_state(path: Path) -> str:
    """Return the size and modification time of a file."""
    try:
        status = path.stat()
    except OSError as error:  # a broken link, or a file that was deleted after it was listed
        return f"{error.strerror}"
    return f"{status.st_size} {status.st_mtime_ns}"


def _check_file(path: Path) -> ImageCheck:
    try:
        content = _read_regular(path)
    except OSError as error:
        return ImageCheck("", "", read_error_reason(error))
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return ImageCheck(digest, "", "empty")
    try:
        image = read_image(io.BytesIO(content))
        return ImageCheck(digest, str(imagehash.phash(image, hash_size=_HASH_SIZE)), "")
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise anything from EOFError to struct.error
        return ImageCheck(digest, "", read_error_reason(error))
