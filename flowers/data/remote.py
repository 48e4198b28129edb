"""Download files from http, https and s3 addresses, and keep copies in a cache of bounded size."""

import functools
import hashlib
import io
import logging
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, NamedTuple

from filelock import FileLock, Timeout

from flowers.data.images import ImageFileError
from flowers.runtime.extras import require_extra
from flowers.runtime.files import (
    DiskFullError,
    atomic_write,
    cache_dir,
    cache_lock,
    check_free_space,
    drop_damaged,
    evict_least_recently_used,
    is_disk_full,
)
from flowers.runtime.text import one_line

log = logging.getLogger(__name__)

_SCHEMES = ("http", "https", "s3")
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20
# Exceptions of boto3 for which a retry is of no use.
_PERMANENT_ERRORS = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError")


class RemoteFileError(ImageFileError):
    """A file that cannot be downloaded."""


class RemoteFile(NamedTuple):
    """A file at an address.

    Attributes:
        name: Name below the address.
        size: Size in bytes.
        sha256: SHA-256, hexadecimal.
    """

    name: str
    size: int
    sha256: str


def is_remote(root: str | Path) -> bool:
    """Return whether `root` is an http, https or s3 address, as opposed to a path.

    Raises:
        ValueError: For an address of another kind, or for s3 without boto3.
    """
    scheme, colon, _ = str(root).partition("://")
    if colon and scheme not in _SCHEMES:
        raise ValueError(f"{root}: expected a path, or an address that starts with {', '.join(_SCHEMES)}")
    if colon and scheme == "s3":
        require_extra(str(root), "shards", "boto3")
    return bool(colon)


def fetch_file(
    address: str, file: IO[bytes], max_bytes: int, s3_endpoint: str | None = None, retry_timeout: float = 300.0
) -> None:
    """Download a file; start again after a failure.

    Args:
        address: https://…, http:// or s3://bucket/key; for s3 with the credentials that boto3 finds.
        file: Where to write the content. After an error it may be incomplete.
        max_bytes: Size at which a longer reply is given up.
        s3_endpoint: URL of an S3-compatible server; None for $AWS_ENDPOINT_URL, or else AWS.
        retry_timeout: Seconds after which a failing download is given up.

    Raises:
        RemoteFileError: If the download is given up, or at once if a retry is of no use.
        OSError: If the disk of `file` is full.
    """
    start, pause = time.monotonic(), 0.5
    while True:
        try:
            with _open(address, s3_endpoint) as source:
                file.seek(0)
                while chunk := source.read(_CHUNK):
                    file.write(chunk)
                    if file.tell() > max_bytes:
                        raise RemoteFileError(
                            f"{one_line(address)} has more than {max_bytes:,} bytes: it is not as packed"
                        )
                if getattr(source, "length", None):  # the rest that an HTTPResponse expects; boto3 raises by itself
                    raise ConnectionError(f"the connection was closed {source.length:,} bytes before the end")
            file.truncate()
            return
        except RemoteFileError:
            raise
        except Exception as error:  # boto3 and the standard library have no common class of errors
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            if _is_permanent(error) or time.monotonic() - start + pause > retry_timeout:
                raise RemoteFileError(f"cannot download {one_line(address)} ({_error_reason(error)})") from error
            log.warning("%s: %s; trying again in %.1f s", one_line(address), _error_reason(error), pause)
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def _open(address: str, s3_endpoint: str | None) -> Any:
    url = urllib.parse.urlsplit(address)
    if url.scheme == "s3":
        return _s3_client(s3_endpoint, os.getpid()).get_object(Bucket=url.netloc, Key=url.path[1:])["Body"]
    return urllib.request.urlopen(urllib.parse.quote(address, safe=":/?&=%@+~"), timeout=_TIMEOUT)


@functools.lru_cache(maxsize=1)
def _s3_client(s3_endpoint: str | None, process: int) -> Any:
    """Return an S3 client. The process is part of the cache key: a fork must not share connections with its parent."""
    import boto3
    from botocore.config import Config

    once = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT, retries={"total_max_attempts": 1})
    return boto3.session.Session().client("s3", endpoint_url=s3_endpoint, config=once)


def _is_permanent(error: Exception) -> bool:
    response = getattr(error, "response", None) or {}
    status = getattr(error, "code", None) or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    return type(error).__name__ in _PERMANENT_ERRORS or isinstance(error, MemoryError)


def _error_reason(error: Exception) -> str:
    name = type(error).__name__ if isinstance(error, HTTPException) or not str(error) else ""
    return one_line(" ".join(f"{name} {error}".split()))


class RemoteFileCache:
    """Local copies of remote files. Several processes may share it: each file is downloaded by one of them.

    Args:
        address: Address of the folder of the files.
        s3_endpoint: URL of an S3-compatible server; None for $AWS_ENDPOINT_URL, or else AWS.
        retry_timeout: Seconds after which a failing download is given up.
        max_gb: Disk space for the copies from all addresses, in GiB.
    """

    def __init__(self, address: str, s3_endpoint: str | None, retry_timeout: float, max_gb: float) -> None:
        self.address, self.s3_endpoint, self.retry_timeout = address.rstrip("/"), s3_endpoint, retry_timeout
        self.max_bytes = int(max_gb * 2**30)
        self.folder = cache_dir() / "shards"
        self._prefetcher: tuple[int, ThreadPoolExecutor] | None = None  # with the process that it belongs to

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_prefetcher": None}

    def path(self, file: RemoteFile) -> Path:
        """Return the path of a copy; download it if there is none. Another process may evict it at any time.

        Raises:
            RemoteFileError: If the file cannot be downloaded or kept, or has other contents.
        """
        copy = self.folder / file.sha256
        with suppress(OSError):  # a cache that only others can write
            os.utime(copy)  # the least recently used copies are evicted first
        if copy.is_file():
            return copy
        with self._needs_disk(file), cache_lock(self.folder / f".{file.sha256}.lock"):
            if not copy.is_file():
                self._download(file, copy)
        return copy

    def text(self, name: str, max_bytes: int) -> str:
        """Return the text of a small file, downloaded on each call.

        Raises:
            RemoteFileError: If the file cannot be downloaded, or has more than `max_bytes` bytes.
            UnicodeDecodeError: If it is not UTF-8.
        """
        content = io.BytesIO()
        fetch_file(f"{self.address}/{name}", content, max_bytes, self.s3_endpoint, self.retry_timeout)
        return content.getvalue().decode("utf-8")

    def drop_if_damaged(self, file: RemoteFile) -> bool:
        """Delete the copy of a file if it has other contents, and return whether that was so."""
        copy = self.folder / file.sha256
        with self._needs_disk(file), cache_lock(self.folder / f".{file.sha256}.lock"):
            if not copy.is_file() or file_sha256(copy) == file.sha256:
                return False
            drop_damaged(copy)
        return True

    def prefetch(self, file: RemoteFile) -> None:
        """Start to download a file in a thread. If that fails, the next call of `path` raises the error."""
        if self._prefetcher is None or self._prefetcher[0] != os.getpid():  # threads do not survive a fork
            self._prefetcher = os.getpid(), ThreadPoolExecutor(2)
        self._prefetcher[1].submit(self.path, file)

    def _download(self, file: RemoteFile, copy: Path) -> None:
        if file.size > self.max_bytes:
            raise RemoteFileError(
                f"{self.address}/{file.name} has {file.size / 2**30:,.2g} GiB: expected at most "
                f"data.cache_gb={self.max_bytes / 2**30:g}"
            )
        for partial in self.folder.glob(f".{copy.name}.*.part"):  # of a process that was killed
            partial.unlink(missing_ok=True)
        if copy.exists():
            drop_damaged(copy)
        with atomic_write(copy, durable=False) as beside, beside.open("wb") as content:
            self._reserve(file.size, beside)
            fetch_file(f"{self.address}/{file.name}", content, file.size, self.s3_endpoint, self.retry_timeout)
            content.flush()
            found = file_sha256(beside)
            if found != file.sha256:
                raise RemoteFileError(
                    f"{self.address}/{file.name} has SHA-256 {found[:12]}…: expected {file.sha256[:12]}… as packed; "
                    "copy the shards again"
                )

    def _reserve(self, size: int, beside: Path) -> None:
        """Evict copies until there is room for `size` bytes, and occupy it by a file of that size.

        Files that other processes are downloading stay: if these leave no room, the cache is too large for a while.
        """
        with cache_lock(self.folder / ".lock"):
            for partial in self.folder.glob(".*.part"):
                self._remove_unless_downloading(partial)
            files = [path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")]
            downloading = 0
            for partial in self.folder.glob(".*.part"):
                with suppress(FileNotFoundError):  # it has become a copy meanwhile
                    downloading += partial.stat().st_size
            evict_least_recently_used(files, self.max_bytes - size - downloading)
            check_free_space(beside, size)
            os.truncate(beside, size)

    def _remove_unless_downloading(self, partial: Path) -> None:
        """Delete what a process that was killed left of a download. One that runs holds the lock of the file."""
        lock = FileLock(self.folder / f".{partial.name.split('.')[1]}.lock")
        with suppress(OSError, Timeout, NotImplementedError), lock.acquire(timeout=0):
            partial.unlink(missing_ok=True)

    @contextmanager
    def _needs_disk(self, file: RemoteFile) -> Iterator[None]:
        """Raise RemoteFileError if a copy cannot be kept: unlike other caches, this one is needed."""
        try:
            yield
        except OSError as error:
            reason = str(error) if isinstance(error, DiskFullError) else error.strerror or str(error)
            advice = "set FLOWERS_CACHE to a folder with room that can be written"
            if isinstance(error, FileNotFoundError) and self.folder.is_dir():
                reason, advice = "another program deleted it meanwhile", "leave the folder alone, and run again"
            raise RemoteFileError(
                f"cannot keep a copy of {self.address}/{file.name} in {one_line(self.folder)} ({one_line(reason)}): "
                f"{advice}"
            ) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
