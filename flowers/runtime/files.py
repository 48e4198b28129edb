"""Atomic and durable writes, JSON files, and the cache folder."""

import errno
import glob
import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK_SECONDS = 30.0  # a killed program loses at most this much work

_DIGEST_BYTES = 32  # of SHA-256, at the start of a cache file
_LOCK_POLL_SECONDS = 0.5
_LONGEST_STEM = 128  # bytes; a file system takes names of 255, and the name of a machine may have 64
_PART = re.compile(r".*\.([0-9]{1,10})(?:\.[0-9a-f]{16})?\.part", re.DOTALL)  # with the process that it belongs to

MAX_JSON_BYTES = 16 * 2**20  # parsed, the worst text takes 25 times as much
MAX_YAML_BYTES = 2**20  # a thousand times what a configuration takes; parsing it takes seconds

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """A file did not fit on its disk. The message names the file, what it needs, and what is free."""

    def __init__(self, path: Path, needed: int = 0) -> None:
        free = f"{_size_text(_free_bytes(path))} are free"
        size = f"it needs {_size_text(needed)}, {free}" if needed else free
        super().__init__(errno.ENOSPC, f"disk full: cannot write {path} ({size}): free some space")
        self.strerror: str
        self.needed = needed

    def __str__(self) -> str:
        return self.strerror


def _size_text(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that a disk is full, or a quota used up.

    torch and safetensors write files outside of Python, and raise errors of their own.
    """
    text = str(error)
    return (
        (isinstance(error, OSError) and error.errno in _DISK_FULL)
        or "No space left on device" in text
        or "StorageFull" in text
        or "QuotaExceeded" in text
    )


def check_free_space(path: Path, needed: int) -> None:
    """Raise DiskFullError if the disk of `path` has less than `needed` bytes free. The file need not exist yet."""
    if _free_bytes(path) < needed:
        raise DiskFullError(path, needed)


def _free_bytes(path: Path) -> int:
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(folder).free


def cache_dir() -> Path:
    """Return the cache folder: `$FLOWERS_CACHE`, or `flowers` in the user's cache folder.

    It may be missing, or not writable: see `optional_cache`.
    """
    if given := os.environ.get("FLOWERS_CACHE") or os.environ.get("XDG_CACHE_HOME"):
        return Path(given) if os.environ.get("FLOWERS_CACHE") else Path(given) / "flowers"
    try:
        return Path.home() / ".cache" / "flowers"
    except RuntimeError:  # a container's user without a home folder: nothing can be created below this path
        return Path(os.devnull) / "no-home-folder"


@contextmanager
def optional_cache(path: Path) -> Iterator[None]:
    """Run a block that only reads or writes a cache: if that fails, log one line that names `path`, and go on.

    A cache saves time. A full disk, a folder that is missing or not writable, or a name that is taken must not stop a
    run. The caller computes what the block did not find.
    """
    try:
        yield
    except OSError as error:
        reason = "disk full" if is_disk_full(error) else error.strerror or str(error)
        log.warning("cannot use the cache %s (%s): continuing without it", path, reason)


@contextmanager
def cache_lock(path: Path, waiting: str = "", while_waiting: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Hold the lock file `path` in a cache folder, which is created; wait if another process holds it.

    Args:
        path: The lock file.
        waiting: What to log if another process holds the lock; empty to log nothing.
        while_waiting: Is called at least once a second while another process holds the lock.

    Yields:
        Whether the lock is held. It is not where the folder cannot be written: others cannot write there either.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting:
                log.info(waiting)
            while not lock.is_locked:
                while_waiting()
                with suppress(Timeout):
                    lock.acquire(timeout=_LOCK_POLL_SECONDS)
    except (OSError, NotImplementedError):  # NotImplementedError: a file system without locks
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def read_cache(path: Path) -> bytes | None:
    """Return the content that `write_cache` has written to `path`; None if there is none that can be used.

    A damaged file, or something else in its place, is deleted and named in one line.
    """
    with optional_cache(path), suppress(FileNotFoundError):  # another process may delete it meanwhile
        if path.is_file():
            stored = path.read_bytes()
            digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() == digest:
                with suppress(OSError):  # a cache that only others can write
                    os.utime(path)
                return content
        if path.exists():
            drop_damaged(path)
    return None


def write_cache(path: Path, content: bytes) -> bool:
    """Write `content` and its checksum to a file of the cache; return whether that was possible, and log it if not."""
    is_written = False
    with optional_cache(path):
        with atomic_write(path, len(content) + _DIGEST_BYTES, durable=False) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        is_written = True
    return is_written  # noqa: RET504  # optional_cache may end the block early


def drop_damaged(path: Path) -> None:
    """Delete a damaged file of the cache, or a folder in its place, and log one line that names it."""
    log.warning("%s is damaged: it is deleted, and its content made again", path)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def evict_least_recently_used(files: Iterable[Path], max_bytes: int) -> None:
    """Delete the files with the oldest modification time until the rest fits into `max_bytes`.

    Empty files, such as lock files, free no space and stay. Other processes may delete the same files meanwhile.

    Args:
        files: The files that share the space. Their users touch them (`os.utime`) on each use.
        max_bytes: How much the remaining files may take together; below 0, as after subtracting the size of a file
            to come, no file remains.
    """
    found = []
    for path in files:
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    surplus = sum(size for _, size, _ in found) - max_bytes
    for _, size, path in sorted(found):
        if surplus <= 0:
            break
        if size:
            path.unlink(missing_ok=True)
            surplus -= size


def chunk_by_time(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield `items` in lists, each with the items of about `CHUNK_SECONDS` seconds."""
    chunk: list[T] = []
    start = time.monotonic()
    for item in items:
        chunk.append(item)
        if time.monotonic() - start >= CHUNK_SECONDS:
            yield chunk
            chunk, start = [], time.monotonic()
    if chunk:
        yield chunk


@contextmanager
def atomic_write(path: Path, size: int = 0, durable: bool = True) -> Iterator[Path]:
    """Yield the path of an empty new file next to `path`; rename it to `path` if the block ends without an error.

    A process that is killed inside the block leaves `path` unchanged. Nobody can guess the temporary name, and nothing
    that is there already is opened: in a folder of a stranger, a link would lead elsewhere. The name contains the host
    name and the process id. What dead processes of this machine left behind of the same file is deleted.

    Args:
        path: The file.
        size: How many bytes the file will take, if that is known: checked before the block, and for the message.
        durable: Whether the content is on the disk before the rename, so that a power failure leaves the old or the new
            file. A cache that checks what it reads can do without.

    Raises:
        DiskFullError: The disk is full, by `size` or by an error of the block.
        OSError: Something else is at the temporary path after the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(path.parent, glob.escape(_part_stem(path.name)))
    temporary = _part_of(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        check_free_space(path, size)
        created = os.open(temporary, flags, 0o666)
        try:
            yield temporary
            _check_same(created, temporary)
            if durable:
                _sync(temporary)
        finally:
            os.close(created)  # not before: another file might get the same number
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except Exception as error:
        if is_disk_full(error) and not isinstance(error, DiskFullError):
            raise DiskFullError(path, size) from error
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # an error of the block says more
            temporary.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    """Return a new temporary name for a file or a folder, which tells `remove_stale_parts` its process."""
    return path.with_name(f".{_part_stem(path.name)}.{platform.node()}.{os.getpid()}.{secrets.token_hex(8)}.part")


def _part_stem(name: str) -> str:
    """Return what temporary names begin with: `name`, or a digest of one that leaves no room for the rest."""
    content = os.fsencode(name)
    return name if len(content) <= _LONGEST_STEM else hashlib.sha256(content).hexdigest()


def _check_same(created: int, temporary: Path) -> None:
    """Raise OSError if a path does not lead to the open file `created`."""
    ours, found = os.fstat(created), os.lstat(temporary)
    if (ours.st_dev, ours.st_ino) != (found.st_dev, found.st_ino):
        raise OSError(errno.EEXIST, f"another program has replaced {temporary}", str(temporary))


def remove_stale_parts(folder: Path, name: str = "*") -> None:
    """Delete the temporary files in `folder` of processes of this machine that have ended. A link is left as it is.

    Args:
        folder: The folder; its subfolders are not searched.
        name: A glob pattern for the names of the finished files.
    """
    node = glob.escape(platform.node())
    earlier = folder.glob(f".{name}.{node}.*[0-9].part")  # of earlier versions, whose names had no random part
    for path in [*folder.glob(f".{name}.{node}.*[0-9].{'[0-9a-f]' * 16}.part"), *earlier]:
        found = _PART.fullmatch(path.name)
        if found and not _is_running(int(found[1])):
            with suppress(OSError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user
        return True
    return True


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Yield an empty folder next to `folder`; rename it to `folder` if the block ends without an error.

    Hold a lock around it: the temporary folder that a killed process left behind is deleted first.

    Raises:
        DiskFullError: The disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{glob.escape(_part_stem(folder.name))}.*.part"):
        found = _PART.fullmatch(stale.name)
        if found and platform.node() in stale.name and not _is_running(int(found[1])):
            _remove_part(stale)
    _remove_part(folder.with_name(f".{folder.name}.part"))  # of an earlier version
    temporary = _part_of(folder)
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(folder)
        _sync(folder.parent)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(folder, getattr(error, "needed", 0)) from error
        if isinstance(error, OSError) and error.errno:  # the user knows no temporary name
            error.filename = str(error.filename or folder).replace(str(temporary), str(folder))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_part(folder: Path) -> None:
    """Delete a temporary folder; what is a link, or a file, stays."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def atomic_write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write `text` as UTF-8, atomically and with its line ends unchanged.

    File names that are not valid UTF-8 (Linux allows any bytes) are written as their original bytes.
    """
    content = text.encode("utf-8", errors="surrogateescape")
    with atomic_write(path, len(content), durable) as temporary:
        temporary.write_bytes(content)


def short_name(folder: Path) -> str:
    """Return the last two parts of a path, such as "2025-01-31/12-30-00": what trackers call a run or a group."""
    return "/".join(folder.absolute().parts[-2:])


def write_json(content: Mapping[str, Any], path: str | Path) -> None:
    r"""Write `content` as indented JSON, atomically; invalid bytes of file names become escapes such as `\udce9`.

    Raises:
        ValueError: A number is infinite or not a number.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    escaped = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    atomic_write_text(Path(path), escaped + "\n")


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file for reading, if it is a regular one or a link to one. Opening a FIFO or a device may block, or act.

    Raises:
        OSError: It is something else, or cannot be opened.
    """
    _check_regular(Path(path).stat(), path)
    # It may be another file by now: O_NONBLOCK opens a FIFO without waiting for its writer. Windows has no such flags.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115  # of a descriptor; the caller closes it
    try:
        _check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: It is no regular file, has more than `max_bytes` bytes, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, expected at most {max_bytes:,}", str(path))
        return file.read(size)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Raises:
        ValueError: The file is missing, too large, or holds something else.
    """
    try:
        return dict(json.loads(read_bounded(path, MAX_JSON_BYTES).decode("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise ValueError(f"{path} cannot be read: {reason}") from error


_YAML_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MAX_YAML_DIGITS = 400  # the largest float has 309


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values, without aliases: ten lines of them are a billion values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        # A number to the base of 60 of a megabyte, "1:59:59…", would take minutes.
        if node.tag in _YAML_NUMBERS and len(node.value) > _MAX_YAML_DIGITS:
            raise yaml.YAMLError("a number that is too long")
        return super().construct_scalar(node)


def read_yaml(path: str | Path) -> Any:
    """Return plain values from a YAML file of this project. Nothing in it is resolved: `${…}` is a text.

    Raises:
        ValueError: The file is missing, too large, or no plain YAML.
    """
    try:
        text = read_bounded(path, MAX_YAML_BYTES).decode("utf-8", errors="surrogateescape")
        return yaml.load(text, _PlainLoader)  # a safe loader
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # PyYAML raises anything from AttributeError to KeyError for a damaged file
        raise ValueError(f"{path} cannot be read: it is damaged") from error
