"""Download a public archive of images: complete and verified, or not at all."""

import hashlib
import logging
import tarfile
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO

from filelock import FileLock

from flowers.runtime.files import atomic_directory, atomic_write, is_disk_full
from flowers.runtime.logging import progress_bar

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


def download_archive(root: str | Path, url: str, sha256: str, size: int) -> None:
    """Create the folder `root` from the one folder inside the archive (.tgz) at `url`, unless it exists.

    An archive at `<root>.tgz` is used in place of a download. If another process creates the same folder, wait for it.

    Args:
        root: The folder.
        url: Address of the archive.
        sha256: Expected SHA-256 of the archive, hexadecimal.
        size: Expected size of the archive in bytes.

    Raises:
        ValueError: If the archive cannot be downloaded or unpacked, or is not the expected one.
    """
    root = Path(root)
    archive = root.with_name(f"{root.name}.tgz")
    if root.is_dir():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if root.is_dir():
            return
        for partial in root.parent.glob(f".{archive.name}.*.part"):  # of a download that was killed
            partial.unlink()
        if not archive.exists():
            log.info("downloading %s (%.0f MB) to %s", url, size / 1e6, archive)
            with atomic_write(archive, size) as beside:
                _download(url, beside, archive, size)
                _verify_archive(beside, url, sha256, size)
        _verify_archive(archive, archive, sha256, size)
        _extract_archive(archive, root)
        archive.unlink()


def _download(url: str, path: Path, archive: Path, size: int) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, path.open("wb") as file:
            for chunk in progress_bar(_chunks(response), "Downloading", -(-size // _CHUNK)):
                file.write(chunk)
                if file.tell() > size:  # another archive, or a reply without end
                    break
    except (OSError, HTTPException, ValueError) as error:
        if is_disk_full(error):
            raise
        raise ValueError(
            f"cannot download {url} ({error}): copy the file to {archive} by hand, or use your own images "
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
            f"{name} is not the expected archive: found {path.stat().st_size:,} bytes with SHA-256 {found[:12]}…, "
            f"expected {size:,} bytes with {sha256[:12]}…; delete the file if you put it there, and start again"
        )


def _extract_archive(archive: Path, root: Path) -> None:
    """Unpack the one folder inside the archive as `root`."""
    try:
        with atomic_directory(root) as beside, tarfile.open(archive) as tar:
            # "data" refuses absolute paths, "..", links that lead outside and devices.
            tar.extractall(beside, filter="data")
            (folder,) = beside.iterdir()
            for entry in folder.iterdir():
                entry.rename(beside / entry.name)
            folder.rmdir()
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{archive} cannot be unpacked: {error}") from error
