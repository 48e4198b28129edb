import io
import json
import tarfile
from pathlib import Path

import pytest

from flowers.deploy.export.web_page import RUNTIME_FILES, read_web_runtime
from flowers.deploy.page_files import EXPORT_PAGE
from flowers.runtime.files import read_json
from tests.browser import FACTS, write_stand_in_page


def package_files(name: str = "onnxruntime-web") -> dict[str, bytes]:
    package = json.dumps({"name": name, "version": "1.2.3"}).encode()
    return {"package.json": package} | dict.fromkeys(RUNTIME_FILES, b"program")


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_read_web_runtime_reads_an_archive_and_a_folder(tmp_path: Path):
    archive = write_archive(tmp_path / "ort.tgz", package_files())
    for name, content in package_files().items():
        path = tmp_path / "node_modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    runtime = read_web_runtime(str(archive))
    assert runtime == read_web_runtime(str(tmp_path / "node_modules"))
    assert runtime.version == "1.2.3"
    assert set(runtime.files) == set(RUNTIME_FILES.values())


def test_read_web_runtime_says_what_is_wrong(tmp_path: Path):
    (tmp_path / "text.tgz").write_text("no archive")
    content = write_archive(tmp_path / "cut.tgz", package_files()).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(content[: len(content) // 2])
    write_archive(tmp_path / "other.tgz", package_files("left-pad"))
    write_archive(tmp_path / "none.tgz", {"readme": b""})
    write_archive(tmp_path / "old.tgz", {"package.json": package_files()["package.json"]})
    for path, message in (
        (None, r"formats=\[web\] needs onnxruntime-web: run npm pack onnxruntime-web, then give web_runtime="),
        ("gone.tgz", "no such file or folder; npm pack onnxruntime-web"),
        ("text.tgz", "expected the .tgz file that npm pack onnxruntime-web makes"),
        ("cut.tgz", "expected the .tgz file that npm pack onnxruntime-web makes"),
        ("other.tgz", "expected the package onnxruntime-web, found left-pad"),
        ("none.tgz", "found no package.json"),
        (".", "found no package.json"),
        ("old.tgz", r"version 1\.2\.3 of onnxruntime-web has no dist/ort\.wasm\.min\.mjs"),
    ):
        with pytest.raises(ValueError, match=message):
            read_web_runtime(None if path is None else str(tmp_path / path))


def test_read_web_runtime_follows_no_link_in_an_archive(tmp_path: Path):
    path = tmp_path / "ort.tgz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("package/package.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"found no package\.json"):
        read_web_runtime(str(path))


def test_write_web_page_writes_a_folder_of_static_files(tmp_path: Path):
    page = write_stand_in_page(tmp_path / "exported" / "web")
    names = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    runtime = {f"ort/{name}" for name in (*RUNTIME_FILES.values(), "LICENSE", "ThirdPartyNotices.txt")}
    assert names == {*EXPORT_PAGE, "settings.json", "model.onnx", "LICENSE.txt"} | runtime
    settings = read_json(page / "settings.json")
    assert settings["classes"] == FACTS["classes"]
    assert settings["threshold"] == 0.5
    for path in EXPORT_PAGE:  # names are in settings.json only
        assert "alert(1)" not in (page / path).read_text()
