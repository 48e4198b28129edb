"""Download a public archive of images: whole and verified, or not at all."""

import hashlib
import logging
import tarfile
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO

from filelock import FileLock

from flowers.runtime.files import atomic_directory, atomic_write
from flowers.runtime.logging import progress_bar

log = logging.getLogger(__name__)


_CHUNK = 1 << 20


_TIMEOUT = 30  # seconds without a byte


def download_archive(root: str | Path, url: str, sha256: str, size: int) -> None:
    """Makes sure that `root` holds the one folder inside the archive (.tgz) at `url`.

    Does nothing where `root` is there. An archive `<root>.tgz` put there by hand is taken in place of a download.
    Both are checked against `sha256` and `size` in bytes. Another process at the same work is waited for.

    Raises ValueError where the archive cannot be had or is not the one wanted.
    """
    root = Path(root)
    archive = root.with_name(f"{root.name}.tgz")
    if root.is_dir():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if root.is_dir():
            return
        for left in root.parent.glob(f".{archive.name}.*.part"):  # by a download that was killed
            left.unlink()
        if not archive.exists():
            log.info("downloading %s (%.0f MB) to %s", url, size / 1e6, archive)
            with atomic_write(archive) as beside:
                _download(url, beside, archive, size)
                _verify_archive(beside, url, sha256, size)
        _verify_archive(archive, archive, sha256, size)
        _extract_archive(archive, root)
        archive.unlink()


def _download(url: str, to: Path, archive: Path, size: int) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, to.open("wb") as file:
            for chunk in progress_bar(_chunks(response), "Downloading", -(-size // _CHUNK)):
                file.write(chunk)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(
            f"cannot download {url} ({error}): put the file at {archive} by hand, or use your own photos "
            "(data=folder data.root=PATH), or experiment=quickstart, which needs no network"
        ) from error


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _verify_archive(path: Path, name: object, sha256: str, size: int) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if (path.stat().st_size, found) != (size, sha256):
        raise ValueError(
            f"{name} is not the archive wanted: found {path.stat().st_size:,} bytes with SHA-256 {found[:12]}…, "
            f"wanted {size:,} with {sha256[:12]}…; if you put it there, remove it, and start again"
        )


def _extract_archive(archive: Path, root: Path) -> None:
    """Unpacks the one folder inside the archive as `root`."""
    try:
        with atomic_directory(root) as beside, tarfile.open(archive) as tar:
            # "data": no absolute path, no "..", no link that leads out, no device.
            tar.extractall(beside, filter="data")
            (inside,) = beside.iterdir()
            for entry in inside.iterdir():
                entry.rename(beside / entry.name)
            inside.rmdir()
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{archive} cannot be unpacked: {error}") from error
