"""A page that classifies photos in the browser: a folder of static files, for any web server."""

import base64
import hashlib
import json
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowers.data.images import MAX_PIXELS
from flowers.deploy.page_files import EXPORT_PAGE, read_page
from flowers.runtime.files import atomic_write_text
from flowers.runtime.text import one_line

PACKAGE = "onnxruntime-web"

# What the page loads of the package, by its name there. Web servers know the type of .js better than that of .mjs.
RUNTIME_FILES = {
    "dist/ort.wasm.min.mjs": "ort.wasm.min.js",
    "dist/ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.js",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}

_MAX_BYTES = 2**27  # of one file of the package


class WebRuntime(NamedTuple):
    """The part of onnxruntime-web that the page loads.

    Attributes:
        version: The version of the package.
        files: Their content, by the name that they get in the page's folder.
    """

    version: str
    files: Mapping[str, bytes]


def read_web_runtime(path: str | None) -> WebRuntime:
    """Read onnxruntime-web from the archive that `npm pack` writes, or from the folder of the package.

    Raises:
        ValueError: There is no such package, it is another one, or it lacks a file.
    """
    command = f"npm pack {PACKAGE}"
    if path is None:
        raise ValueError(f"formats=[web] needs {PACKAGE}: run {command}, then give web_runtime={PACKAGE}-VERSION.tgz")
    key, location = f"web_runtime={one_line(path)}", Path(path)
    names = ("package.json", *RUNTIME_FILES)
    try:
        found = _read_folder(location, names) if location.is_dir() else _read_archive(location, names)
    except FileNotFoundError as error:
        raise ValueError(f"{key}: no such file or folder; {command} makes the file") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{key}: expected the .tgz file that {command} makes, or its unpacked folder") from error
    try:
        package = json.loads(found["package.json"])
        name, version = str(package["name"]), str(package["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{key}: expected the package {PACKAGE}, found no package.json; {command} makes it") from error
    if name != PACKAGE:
        raise ValueError(f"{key}: expected the package {PACKAGE}, found {one_line(name)}; {command} makes it")
    if missing := [name for name in RUNTIME_FILES if name not in found]:
        raise ValueError(
            f"{key}: version {one_line(version)} of {PACKAGE} has no {missing[0]}; {command} makes a newer one"
        )
    return WebRuntime(version, {new: found[old] for old, new in RUNTIME_FILES.items()})


def _read_folder(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _read_archive(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:  # nothing is unpacked to the disk
            name = member.name.removeprefix("package/")
            if name in names and member.isreg() and member.size <= _MAX_BYTES:
                file = archive.extractfile(member)
                assert file is not None
                found[name] = file.read()
    return found


def write_web_page(folder: Path, facts: Mapping[str, Any], runtime: WebRuntime) -> None:
    """Add the page to a folder that holds its model.onnx.

    Names are data: they are in settings.json only, and the page shows them as text.

    Args:
        folder: The page's folder.
        facts: The content of model.json.
        runtime: What computes in the browser.
    """
    import onnxruntime

    for name in ("static", "ort"):
        (folder / name).mkdir()
    for name, content in read_page(EXPORT_PAGE).items():
        (folder / name).write_bytes(content)
    for name, content in runtime.files.items():
        (folder / "ort" / name).write_bytes(content)
    for notice in ("LICENSE", "ThirdPartyNotices.txt"):  # the package for browsers has none
        shutil.copyfile(Path(onnxruntime.__file__).parent / notice, folder / "ort" / notice)
    shutil.copyfile(folder.parent / "LICENSE.txt", folder / "LICENSE.txt")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).digest()
    settings = {
        "classes": facts["classes"],
        "threshold": facts["rejection"]["strangeness_threshold"] if "rejection" in facts else None,
        "resize": facts["resize"],
        "max_pixels": MAX_PIXELS,
        "model": base64.b64encode(digest).decode(),
        "runtime": runtime.version,
    }
    atomic_write_text(folder / "settings.json", json.dumps(settings, indent=1) + "\n")
