"""Files at an http(s) or S3 address, and the bounded cache of their local copies."""

import functools
import hashlib
import importlib.util
import logging
import os
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from flowers.runtime.files import atomic_write, cache_dir

log = logging.getLogger(__name__)


_SCHEMES = ("http", "https", "s3")


_TIMEOUT = 30  # seconds without a byte


_CHUNK = 1 << 20


_PERMANENT_ERRORS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ParamValidationError",
    "NoRegionError",
)  # boto3's


class RemoteFileError(ValueError):
    """What could not be had from afar, in one line, also where a worker's error comes with its traceback as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().rpartition("\n")[2].removeprefix(f"{__name__}.RemoteFileError: "))


def is_remote(address: str | Path) -> bool:
    """Whether it is an address and no path. Raises ValueError for one of an unknown kind or where boto3 is missing."""
    scheme, colon, _ = str(address).partition("://")
    if colon and scheme not in _SCHEMES:
        raise ValueError(f"{address}: wanted a path or an address that starts with {', '.join(_SCHEMES)}")
    if colon and scheme == "s3" and importlib.util.find_spec("boto3") is None:
        raise ValueError(f"{address} needs boto3: pip install 'flowers[shards]'")
    return bool(colon)


def fetch_file(address: str, to: Path, s3_endpoint: str | None = None, retry_timeout: float = 300.0) -> None:
    """Writes the file at `address` to the path `to`, anew after each break.

    Args:
        address: https://…, http://… or s3://bucket/key, with the credentials that boto3 finds.
        to: is left half-written where it fails.
        s3_endpoint: of an S3-compatible server; None for AWS's, or the one in AWS_ENDPOINT_URL.
        retry_timeout: seconds after which a lost connection is given up.

    Raises LostError, at once where to try again would be of no use.
    """
    start, pause = time.monotonic(), 0.5
    while True:
        try:
            with _open(address, s3_endpoint) as source, to.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    file.write(chunk)
                if getattr(source, "length", None):  # what an HTTPResponse still waits for; boto3's raises by itself
                    raise ConnectionError(f"the connection broke off {source.length:,} bytes before the end")
            return
        except Exception as error:  # boto3's have no class in common with those of the standard library
            is_local = isinstance(error, OSError) and error.filename is not None
            if is_local or _is_permanent(error) or time.monotonic() - start + pause > retry_timeout:
                raise RemoteFileError(f"cannot get {address} ({_error_reason(error)})") from error
            log.warning("%s: %s; trying again in %.1f s", address, _error_reason(error), pause)
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def _open(address: str, s3_endpoint: str | None) -> Any:
    url = urllib.parse.urlsplit(address)
    if url.scheme == "s3":
        return _s3_client(s3_endpoint, os.getpid()).get_object(Bucket=url.netloc, Key=url.path[1:])["Body"]
    return urllib.request.urlopen(urllib.parse.quote(address, safe=":/?&=%@+~"), timeout=_TIMEOUT)


@functools.lru_cache(maxsize=1)
def _s3_client(s3_endpoint: str | None, process: int) -> Any:
    """A client of this process: a forked one shall not share its parent's connections."""
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
    return " ".join(f"{name} {error}".split())


class RemoteFile(NamedTuple):
    """A file below an address: its name there, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


class RemoteFileCache:
    """Fetches what is asked for; safe with several processes, each file is fetched by one of them.

    Args:
        address: of the folder of the files.
        s3_endpoint, retry_timeout: see `remote.fetch`.
        max_gb: gibibytes that the copies of all addresses may take on this disk.
    """

    def __init__(self, address: str, s3_endpoint: str | None, retry_timeout: float, max_gb: float) -> None:
        self.address, self.s3_endpoint, self.retry_timeout = address.rstrip("/"), s3_endpoint, retry_timeout
        self.max_bytes = int(max_gb * 2**30)
        self.folder = cache_dir() / "shards"
        self._ahead: tuple[int, ThreadPoolExecutor] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_ahead": None}

    def path(self, file: RemoteFile) -> Path:
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
            fetch_file(f"{self.address}/{name}", beside, self.s3_endpoint, self.retry_timeout)
            return beside.read_text(encoding="utf-8")
        finally:
            beside.unlink(missing_ok=True)

    def prefetch(self, file: RemoteFile) -> None:
        """Has a thread fetch what will be needed soon; whoever needs it then says what went wrong."""
        if self._ahead is None or self._ahead[0] != os.getpid():  # a forked process has none of its parent's threads
            self._ahead = os.getpid(), ThreadPoolExecutor(2)
        self._ahead[1].submit(self.path, file)

    def _fetch(self, file: RemoteFile, kept: Path) -> None:
        for left in self.folder.glob(f".{kept.name}.*.part"):  # by a process that was killed
            left.unlink(missing_ok=True)
        with atomic_write(kept) as beside:
            self._reserve(file, beside)
            fetch_file(f"{self.address}/{file.name}", beside, self.s3_endpoint, self.retry_timeout)
            with beside.open("rb") as written:
                found = hashlib.file_digest(written, "sha256").hexdigest()
            if found != file.sha256:
                raise RemoteFileError(f"{self.address}/{file.name} is not what was packed: found {found[:12]}…")

    def _reserve(self, file: RemoteFile, beside: Path) -> None:
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
