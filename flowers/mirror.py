"""Copies of remote files on this disk, at most so many bytes: those used longest ago make room for new ones."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from flowers import atomic, paths, remote


class Remote(NamedTuple):
    """A file below an address: its name there, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


class Mirror:
    """Fetches what is asked for; safe with several processes, each file is fetched by one of them.

    Args:
        address: of the folder of the files.
        endpoint, patience: see `remote.fetch`.
        max_gb: gibibytes that the copies of all addresses may take on this disk.
    """

    def __init__(self, address: str, endpoint: str | None, patience: float, max_gb: float) -> None:
        self.address, self.endpoint, self.patience = address.rstrip("/"), endpoint, patience
        self.max_bytes = int(max_gb * 2**30)
        self.folder = paths.cache() / "shards"
        self._ahead: tuple[int, ThreadPoolExecutor] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_ahead": None}

    def path(self, file: Remote) -> Path:
        """A copy, fetched where there is none. It may be gone at any time. Raises `remote.LostError`."""
        kept = self.folder / file.sha256
        with suppress(FileNotFoundError):
            os.utime(kept)  # what is used is dropped last
            return kept
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{file.sha256}.lock"):
            if not kept.exists():
                self._fetch(file, kept)
        return kept

    def text(self, name: str) -> str:
        """A small file, as it is now. Raises `remote.LostError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{name}.{os.getpid()}.part"
        try:
            remote.fetch(f"{self.address}/{name}", beside, self.endpoint, self.patience)
            return beside.read_text(encoding="utf-8")
        finally:
            beside.unlink(missing_ok=True)

    def ahead(self, file: Remote) -> None:
        """Has a thread fetch what will be needed soon; whoever needs it then says what went wrong."""
        if self._ahead is None or self._ahead[0] != os.getpid():  # a forked process has none of its parent's threads
            self._ahead = os.getpid(), ThreadPoolExecutor(2)
        self._ahead[1].submit(self.path, file)

    def _fetch(self, file: Remote, kept: Path) -> None:
        for left in self.folder.glob(f".{kept.name}.*.part"):  # by a process that was killed
            left.unlink(missing_ok=True)
        with atomic.writing(kept) as beside:
            self._reserve(file, beside)
            remote.fetch(f"{self.address}/{file.name}", beside, self.endpoint, self.patience)
            with beside.open("rb") as written:
                found = hashlib.file_digest(written, "sha256").hexdigest()
            if found != file.sha256:
                raise remote.LostError(f"{self.address}/{file.name} is not what was packed: found {found[:12]}…")

    def _reserve(self, file: Remote, beside: Path) -> None:
        """Drops the files used longest ago until there is room, and takes it."""
        with FileLock(self.folder / ".lock"):
            known = []
            for path in self.folder.iterdir():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    known.append((status.st_mtime_ns, status.st_size, path))
            surplus = sum(size for _, size, _ in known) + file.size - self.max_bytes
            for _, size, path in sorted(known):
                if surplus <= 0:
                    break
                if size:  # no lock
                    path.unlink(missing_ok=True)
                    surplus -= size
            with beside.open("wb") as room:
                room.truncate(file.size)
