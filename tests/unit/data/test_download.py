import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from flowers.data.download import download_archive


def archive(path: Path, names: tuple[str, ...] = ("flowers/rose/a.jpg", "flowers/LICENSE.txt")) -> dict[str, object]:
    """A .tgz at `path` and the arguments that fetch it."""
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    content = path.read_bytes()
    return {"url": path.as_uri(), "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_an_archive_is_fetched_once_and_unpacked(tmp_path: Path):
    source = archive(tmp_path / "source.tgz")
    root = tmp_path / "data" / "photos"
    download_archive(root, **source)  # type: ignore[arg-type]
    assert (root / "rose" / "a.jpg").exists()
    assert left_in(root.parent) == {"photos"}
    download_archive(root, url="file:///nowhere", sha256="", size=0)


def test_an_archive_put_there_by_hand_is_taken(tmp_path: Path):
    source = archive(tmp_path / "photos.tgz")
    download_archive(tmp_path / "photos", **source | {"url": "file:///nowhere"})  # type: ignore[arg-type]
    assert (tmp_path / "photos" / "rose" / "a.jpg").exists()


def test_what_cannot_be_fetched_says_what_to_do(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot download file:///nowhere.*photos.tgz by hand.*experiment=quickstart"):
        download_archive(tmp_path / "photos", url="file:///nowhere", sha256="", size=1)
    assert left_in(tmp_path) == set()


def test_an_archive_that_is_not_the_one_wanted_is_not_kept(tmp_path: Path):
    source = archive(tmp_path / "source.tgz")
    for wrong in ({"sha256": "0" * 64}, {"size": 1}):
        with pytest.raises(ValueError, match="is not the archive wanted"):
            download_archive(tmp_path / "data" / "photos", **source | wrong)  # type: ignore[arg-type]
    assert left_in(tmp_path / "data") == set()


def test_a_path_that_escapes_is_not_followed(tmp_path: Path):
    source = archive(tmp_path / "source.tgz", ("flowers/a.jpg", "../escaped.jpg"))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        download_archive(tmp_path / "data" / "photos", **source)  # type: ignore[arg-type]
    assert not (tmp_path / "escaped.jpg").exists()
    assert not (tmp_path / "data" / "photos").exists()


def test_a_download_or_an_unpacking_cut_short_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = archive(tmp_path / "source.tgz")
    root = tmp_path / "data" / "photos"
    for name in ("_chunks", "_extract_archive"):
        with monkeypatch.context() as patch:
            patch.setattr(f"flowers.data.download.{name}", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                download_archive(root, **source)  # type: ignore[arg-type]
        assert not root.exists()
    download_archive(root, **source)  # type: ignore[arg-type]
    assert (root / "rose" / "a.jpg").exists()
