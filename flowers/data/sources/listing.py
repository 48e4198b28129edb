"""Which files below a folder may be photos. All programs ask here: what a system puts beside photos is never one."""

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from flowers.runtime.text import listed_names, one_line

log = logging.getLogger(__name__)

# What systems and programs put beside photos, in any case; and hidden names.
_JUNK = re.compile(
    r"\..*"
    r"|@(eadir|tmp|sharebin|__thumb|transcode|recycle|recently-snapshot|snapshots?)"  # Synology and QNAP
    r"|#(recycle|snapshot)|~snapshot"
    r"|\$recycle\.bin|system volume information|found\.\d{3}|(eh)?thumbs(_vista)?\.db(:.*)?|desktop\.ini"  # Windows
    r"|picasa\.ini|zbthumbnail\.info|_vti_\w+"
    r"|__macosx|icon\r|network trash folder|temporary items|thevolumesettingsfolder|:2e.*"  # macOS
    r"|lost\+found|__pycache__"
    r"|.*[:\uf03a]zone\.identifier(:\$data)?|.*@syno(eastream|resource)",  # streams of a file that became files
    re.IGNORECASE | re.DOTALL,
)
_SUFFIXES_OF_NOTES = {
    *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf", ".mat"),
}


def is_junk(name: str) -> bool:
    """Return whether a file or folder of this name is none of the user's photos or classes."""
    return _JUNK.fullmatch(name) is not None


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted.

    Raises:
        ValueError: The folder cannot be read.
    """
    return _entries(folder)[0]


def is_note(name: str) -> bool:
    """Return whether a file is text beside photos, such as labels.csv."""
    return Path(name).suffix.lower() in _SUFFIXES_OF_NOTES


def has_photos(folder: Path) -> bool:
    """Return whether a file that may be a photo lies in a folder itself.

    Raises:
        ValueError: The folder cannot be read.
    """
    return not all(map(is_note, _entries(folder)[1]))


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder."""
    try:
        with os.scandir(folder) as entries:
            kept = [(entry.name, entry.is_dir()) for entry in entries if not is_junk(entry.name)]
    except OSError as error:
        raise _unreadable_folder(error, folder) from error
    return sorted(name for name, is_dir in kept if is_dir), sorted(name for name, is_dir in kept if not is_dir)


def files_below(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it, with "/" between folders.

    Raises:
        ValueError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable_folder(error, folder) from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_junk(name)]
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        files += [f"{prefix}{name}" for name in names if not is_junk(name)]
        if links := [str(Path(parent) / name) for name in folders if (Path(parent) / name).is_symlink()]:
            log.warning("ignoring links to folders inside a folder of images: %s", listed_names(links))
    return files


def expand_image_paths(photos: str | Sequence[str]) -> list[Path]:
    """Return the files that the setting `photos` names, each once.

    Args:
        photos: A file, a folder (all files below it), a glob, or a list of these. The files of a folder or a glob are
            sorted. Junk counts only where it is named itself.

    Raises:
        ValueError: For an empty setting, or a name without a file.
    """
    names = [str(name) for name in (photos if isinstance(photos, (list, tuple)) else [photos])]
    if not photos or not all(names):
        raise ValueError("no images given: set photos= to a file, a folder, a glob or a list of these")
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            matches = [path / file for file in sorted(files_below(path))]
        elif path.exists():  # also a name with glob characters
            matches = [path]
        else:
            found = map(Path, sorted(glob.iglob(name, recursive=True)))  # noqa: PTH207  # Path.glob: no absolute pattern
            matches = [match for match in found if not match.is_dir() and not _has_junk(match, path)]
        if not matches:
            raise ValueError(
                f"photos={one_line(name)}: no such file: "
                "expected a file, a folder, a glob such as 'a/**/*.jpg' or a list"
            )
        files |= dict.fromkeys(matches)
    return list(files)


def _has_junk(path: Path, pattern: Path) -> bool:
    """Return whether a match of a pattern lies in junk that the pattern does not name. Globs leave out hidden names."""
    return any(is_junk(part) and part[0] != "." and part not in pattern.parts for part in path.parts)


def _unreadable_folder(error: OSError, folder: Path) -> ValueError:
    return ValueError(
        f"the folder {one_line(error.filename or folder)} cannot be read ({error.strerror or error}): "
        "make it readable, or move it away"
    )
