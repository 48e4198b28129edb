"""Reads every photo once before training, so that a broken one is named up front and not found by a worker."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import imagehash
from filelock import FileLock

from flowers import atomic, paths, photos, pieces, progress

log = logging.getLogger(__name__)

_FORMAT = 1  # of the kept verdicts: another number forgets them all
_HASH_SIZE = 16  # a perceptual hash of 16 x 16 bits


class Verdict(NamedTuple):
    """What reading a file told: its SHA-256, the photo's perceptual hash in hexadecimal, or why it cannot be read."""

    sha256: str
    phash: str
    reason: str  # empty for a good photo


def verify(root: str | Path, files: Sequence[str]) -> dict[str, Verdict]:
    """Reads each of `files` (paths below `root`) in full, in parallel; returns a verdict for each.

    Verdicts are kept in the cache folder by path, size and time of change, so that a second call reads nothing;
    another process at the same work is waited for.
    """
    root = Path(root).resolve()
    kept_at = paths.cache() / "verdicts" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    kept_at.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept_at.with_suffix(".lock")):
        kept = _verified(root, files, kept_at)
    return {file: Verdict(*kept[file][1:]) for file in files}


def _verified(root: Path, files: Sequence[str], kept_at: Path) -> dict[str, list[str]]:
    kept = _load(kept_at)
    states = {file: _state(root / file) for file in files}
    new = [file for file in files if kept.get(file, [None])[0] != states[file]]
    if new:
        log.info("checking %d files in %s", len(new), root)
        # Threads suffice: Pillow and hashlib release the interpreter while they decode and digest.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            verdicts = progress.bar(pool.map(lambda file: _read(root / file), new), "Checking photos", len(new))
            for piece in pieces.timed(zip(new, verdicts, strict=True)):
                kept |= {file: [states[file], *verdict] for file, verdict in piece}
                # Not what could not be opened: that is of the moment, and may change while size and time do not.
                lasting = {file: verdict for file, verdict in kept.items() if verdict[1]}
                atomic.write_text(kept_at, json.dumps({"format": _FORMAT, "root": str(root), "verdicts": lasting}))
    return kept


def _load(path: Path) -> dict[str, list[str]]:
    """Kept verdicts: `{path: [state, sha256, phash, reason]}`; none where the file is missing, broken or of old."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["verdicts"]) if kept["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _state(path: Path) -> str:
    """What changes when a file does: its size and time of change."""
    try:
        status = path.stat()
    except OSError as error:  # a link that leads nowhere, or a file that has gone since it was listed
        return f"{error.strerror}"
    return f"{status.st_size} {status.st_mtime_ns}"


def _read(path: Path) -> Verdict:
    try:
        content = path.read_bytes()
    except OSError as error:
        return Verdict("", "", photos.reason(error))
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Verdict(digest, "", "empty")
    try:
        image = photos.read(io.BytesIO(content))
        return Verdict(digest, str(imagehash.phash(image, hash_size=_HASH_SIZE)), "")
    except MemoryError:
        raise
    except Exception as error:  # a stranger's bytes make Pillow raise anything from EOFError to struct.error
        return Verdict(digest, "", photos.reason(error))
