"""Read an image file of any supported format as upright RGB, and check files before training."""

import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, Protocol, runtime_checkable

import imagehash
import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError

from flowers.runtime.files import atomic_write_text, cache_dir, chunk_by_time
from flowers.runtime.logging import progress_bar

log = logging.getLogger(__name__)


_CHECKS_FORMAT = 1  # of the kept verdicts: another number forgets them all


_HASH_SIZE = 16  # a perceptual hash of 16 x 16 bits


class ImageCheck(NamedTuple):
    """What reading a file told: its SHA-256, the photo's perceptual hash in hexadecimal, or why it cannot be read."""

    sha256: str
    phash: str
    reason: str  # empty for a good photo


def check_images(root: str | Path, files: Sequence[str]) -> dict[str, ImageCheck]:
    """Reads each of `files` (paths below `root`) in full, in parallel; returns a verdict for each.

    Verdicts are kept in the cache folder by path, size and time of change, so that a second call reads nothing;
    another process at the same work is waited for.
    """
    root = Path(root).resolve()
    kept_at = cache_dir() / "verdicts" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    kept_at.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept_at.with_suffix(".lock")):
        kept = _check_new(root, files, kept_at)
    return {file: ImageCheck(*kept[file][1:]) for file in files}


def _check_new(root: Path, files: Sequence[str], kept_at: Path) -> dict[str, list[str]]:
    kept = _load_checks(kept_at)
    states = {file: _file_state(root / file) for file in files}
    new = [file for file in files if kept.get(file, [None])[0] != states[file]]
    if new:
        log.info("checking %d files in %s", len(new), root)
        # Threads suffice: Pillow and hashlib release the interpreter while they decode and digest.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            verdicts = progress_bar(pool.map(lambda file: _check_file(root / file), new), "Checking photos", len(new))
            for piece in chunk_by_time(zip(new, verdicts, strict=True)):
                kept |= {file: [states[file], *verdict] for file, verdict in piece}
                # Not what could not be opened: that is of the moment, and may change while size and time do not.
                lasting = {file: verdict for file, verdict in kept.items() if verdict[1]}
                atomic_write_text(
                    kept_at, json.dumps({"format": _CHECKS_FORMAT, "root": str(root), "verdicts": lasting})
                )
    return kept


def _load_checks(path: Path) -> dict[str, list[str]]:
    """Kept verdicts: `{path: [state, sha256, phash, reason]}`; none where the file is missing, broken or of old."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["verdicts"]) if kept["format"] == _CHECKS_FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _file_state(path: Path) -> str:
    """What changes when a file does: its size and time of change."""
    try:
        status = path.stat()
    except OSError as error:  # a link that leads nowhere, or a file that has gone since it was listed
        return f"{error.strerror}"
    return f"{status.st_size} {status.st_mtime_ns}"


def _check_file(path: Path) -> ImageCheck:
    try:
        content = path.read_bytes()
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
    except Exception as error:  # a stranger's bytes make Pillow raise anything from EOFError to struct.error
        return ImageCheck(digest, "", read_error_reason(error))


# Pillow knows more formats than these; some of them (EPS) hand a stranger's file to another program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


MAX_PIXELS = 89_478_485  # Pillow's own bound: a quarter of a gibibyte as RGB


# The bound is checked below, as an error with a clear text, so Pillow's warning beside it says nothing new.
warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=Image.DecompressionBombWarning)


@runtime_checkable
class ImageBytes(Protocol):
    """A photo that lies in no file of its own; see `flowers.shards`."""

    def content(self) -> bytes:
        """Its bytes."""


class ImageRoot(Protocol):
    """Where photos lie: the path of a folder, `flowers.folder.Folder` or `flowers.shards.Shards`."""

    def __truediv__(self, path: str, /) -> Path | ImageBytes:
        """The photo of that path below it."""


def read_image(path: str | Path | IO[bytes] | ImageBytes) -> Image.Image:
    """The photo at `path` as an RGB image of 8 bits a channel, upright as its EXIF tag says.

    Transparency is laid on white; greyscale of 16 bits is scaled, not clipped; of a moving image, the first frame.

    Raises ValueError for more than MAX_PIXELS pixels; OSError or whatever Pillow raises for what it cannot read.
    """
    with Image.open(
        io.BytesIO(path.content()) if isinstance(path, ImageBytes) else path, formats=IMAGE_FORMATS
    ) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, over the limit of {MAX_PIXELS:,}")
        image.load()
        return to_upright_rgb(image)


def read_error_reason(error: Exception) -> str:
    """Why `read` could not read a photo, in a few words without a path."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"over the limit of {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    return " ".join(str(error).split()) or type(error).__name__


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, turned as its EXIF tag says; see `read`."""
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits, on the scale that its type or else its own values span."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode == "F":
        low, high = values.min(), values.max()
    else:
        low, high = 0.0, 65_535.0 if values.max() > 255 else 255.0
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
