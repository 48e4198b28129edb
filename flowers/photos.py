"""Finds the photos of a folder and reads each as an upright RGB image, whatever its format."""

import glob
import io
import os
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow knows more formats than these; some of them (EPS) hand a stranger's file to another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow's own bound: a quarter of a gibibyte as RGB

_SPLITS = ("train", "val", "test")
_LITTER = {"thumbs.db", "desktop.ini", "icon\r"}  # what Windows and macOS leave in any folder that they have shown

# The bound is checked below, as an error with a clear text, so Pillow's warning beside it says nothing new.
warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=Image.DecompressionBombWarning)


@runtime_checkable
class Packed(Protocol):
    """A photo that lies in no file of its own; see `flowers.shards`."""

    def content(self) -> bytes:
        """Its bytes."""


class Root(Protocol):
    """Where photos lie: the path of a folder, `flowers.folder.Folder` or `flowers.shards.Shards`."""

    def __truediv__(self, path: str, /) -> Path | Packed:
        """The photo of that path below it."""


class Found(NamedTuple):
    """A file that should be a photo: its path below the root ("/"-separated), class, and split where that is given."""

    path: str
    label: str
    split: str | None


def find(root: str | Path) -> list[Found]:
    """Every file of a folder with one sub-folder a class, sorted by path.

    Files at the top and hidden files are passed over; sub-folders of a class are walked. A folder whose only
    sub-folders are `train`, `val` and perhaps `test` is read as a split that is given.

    Raises ValueError where there is no such folder, or fewer than two classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"no folder of photos at {root}: wanted one with one sub-folder a class (data.root=PATH)")
    folders = _folders(root)
    if "train" in folders and {"val", "test"} & set(folders) and not {"train", "val"} <= set(folders) <= set(_SPLITS):
        raise ValueError(f"{root} has the folders {', '.join(folders)}: wanted train, val and perhaps test, or classes")
    if {"train", "val"} <= set(folders) <= set(_SPLITS):
        found = [
            Found(f"{split}/{label}/{file}", _name(label), split)
            for split in folders
            for label in _folders(root / split)
            for file in _files(root / split / label)
        ]
    else:
        found = [Found(f"{label}/{file}", _name(label), None) for label in folders for file in _files(root / label)]
    _check_classes(root, found)
    return sorted(found)


def listed(given: str | Sequence[str]) -> list[Path]:
    """The files that a user means by a file, a folder (all in it, but what `find` passes over), a glob, or several.

    Each once, in the order given, those of a folder or a glob sorted. Raises ValueError for one that means no file.
    """
    names = [str(name) for name in (given if isinstance(given, (list, tuple)) else [given])]
    if not given or not all(names):
        raise ValueError("which photos? Give photos=FOLDER, a file, a glob or a list of them")
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            meant = [path / file for file in sorted(_files(path))]
        else:
            matches = [name] if path.exists() else sorted(glob.iglob(name, recursive=True))  # noqa: PTH207  # of any root
            meant = [Path(match) for match in matches if not Path(match).is_dir()]
        if not meant:
            raise ValueError(
                f"photos={name}: no file there: wanted a file, a folder, a glob such as 'a/**/*.jpg' or a list"
            )
        files |= dict.fromkeys(meant)
    return list(files)


def read(path: str | Path | IO[bytes] | Packed) -> Image.Image:
    """The photo at `path` as an RGB image of 8 bits a channel, upright as its EXIF tag says.

    Transparency is laid on white; greyscale of 16 bits is scaled, not clipped; of a moving image, the first frame.

    Raises ValueError for more than MAX_PIXELS pixels; OSError or whatever Pillow raises for what it cannot read.
    """
    with Image.open(io.BytesIO(path.content()) if isinstance(path, Packed) else path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, over the limit of {MAX_PIXELS:,}")
        image.load()
        return upright(image)


def reason(error: Exception) -> str:
    """Why `read` could not read a photo, in a few words without a path."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"over the limit of {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    return " ".join(str(error).split()) or type(error).__name__


def upright(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, turned as its EXIF tag says; see `read`."""
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits, on the scale that its type or else its own values span."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode == "F":
        low, high = values.min(), values.max()
    else:
        low, high = 0.0, 65_535.0 if values.max() > 255 else 255.0
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> list[str]:
    """Paths below `folder`, "/"-separated."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        files += [(below / name).as_posix() for name in names if _is_candidate(name)]
    return files


def _is_candidate(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _LITTER


def _name(label: str) -> str:
    # macOS hands out decomposed letters: the same folder is the same class on every machine.
    return unicodedata.normalize("NFC", label)


def _check_classes(root: Path, found: list[Found]) -> None:
    labels = sorted({item.label for item in found})
    if len(labels) < 2:
        raise ValueError(
            f"{root} holds photos of {len(labels)} class(es) {labels}: wanted one sub-folder a class, at least two"
        )
    trained = {item.label for item in found if item.split in (None, "train")}
    if missing := sorted(set(labels) - trained):
        raise ValueError(f"{root}/train lacks the class(es) {', '.join(missing)} that its other splits have")
