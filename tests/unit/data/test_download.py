import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from flowers.data.download import download_archive


def write_archive(
    path: Path, names: tuple[str, ...] = ("flowers/rose/a.jpg", "flowers/LICENSE.txt")
) -> dict[str, object]:
    """Write a .tgz to `path`; return the arguments that download it."""
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    content = path.read_bytes()
    return {"url": path.as_uri(), "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_download_archive_downloads_once_and_unpacks(tmp_path: Path):
    source = write_archive(tmp_path / "source.tgz")
    root = tmp_path / "data" / "photos"
    download_archive(root, **source)  # type: ignore[arg-type]
    assert (root / "rose" / "a.jpg").exists()
    assert names_in(root.parent) == {"photos"}
    download_archive(root, url="file:///nowhere", sha256="", size=0)


def test_download_archive_uses_an_archive_put_there_by_hand(tmp_path: Path):
    source = write_archive(tmp_path / "photos.tgz")
    download_archive(tmp_path / "photos", **source | {"url": "file:///nowhere"})  # type: ignore[arg-type]
    assert (tmp_path / "photos" / "rose" / "a.jpg").exists()


def test_download_archive_says_what_to_do_if_it_cannot_download(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot download file:///nowhere.*photos.tgz by hand.*experiment=quickstart"):
        download_archive(tmp_path / "photos", url="file:///nowhere", sha256="", size=1)
    assert names_in(tmp_path) == set()


def test_download_archive_deletes_an_unexpected_archive(tmp_path: Path):
    source = write_archive(tmp_path / "source.tgz")
    for wrong in ({"sha256": "0" * 64}, {"size": 1}):
        with pytest.raises(ValueError, match="is not the expected archive"):
            download_archive(tmp_path / "data" / "photos", **source | wrong)  # type: ignore[arg-type]
    assert names_in(tmp_path / "data") == set()


def test_download_archive_does_not_unpack_a_path_that_leads_outside(tmp_path: Path):
    source = write_archive(tmp_path / "source.tgz", ("flowers/a.jpg", "../escaped.jpg"))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        download_archive(tmp_path / "data" / "photos", **source)  # type: ignore[arg-type]
    assert not (tmp_path / "escaped.jpg").exists()
    assert not (tmp_path / "data" / "photos").exists()


def test_download_archive_leaves_nothing_incomplete_when_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_archive(tmp_path / "source.tgz")
    root = tmp_path / "data" / "photos"
    for name in ("urllib.response.addinfourl.read", "tarfile.TarFile.extractall"):
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt), raising=False)
            with pytest.raises(KeyboardInterrupt):
                download_archive(root, **source)  # type: ignore[arg-type]
        assert not root.exists()
    download_archive(root, **source)  # type: ignore[arg-type]
    assert (root / "rose" / "a.jpg").exists()
