import socket
from pathlib import Path

import pytest

from flowers.data.remote import RemoteFile, RemoteFileCache, RemoteFileError, fetch_file, is_remote
from flowers.data.shards import ShardSource
from flowers.evaluation.gallery import thumbnail


def test_fetch_file_tries_again_after_a_lost_connection(
    flaky_web: str, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fetch_file(f"{flaky_web}/split.csv", tmp_path / "split.csv", retry_timeout=5)
    assert (tmp_path / "split.csv").read_bytes() == (shards / "split.csv").read_bytes()
    assert "trying again" in caplog.text


def test_fetch_file_names_what_cannot_be_downloaded_in_one_line(web: str, s3: str, tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # does not listen
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/shards.json"
        with pytest.raises(RemoteFileError, match=r"^cannot download http.*shards.json .*refused"):
            fetch_file(address, tmp_path / "file", retry_timeout=0.1)
    for missing in (f"{web}/none/shards.json", "s3://garden/none/shards.json"):
        with pytest.raises(RemoteFileError, match=r"^cannot download .*shards.json .*404|NoSuchKey"):
            fetch_file(missing, tmp_path / "file", s3_endpoint=s3, retry_timeout=5)


def test_remote_file_error_of_a_worker_is_one_line():
    error = RemoteFileError(
        "Caught RemoteFileError in a worker.\nTraceback:\nflowers.data.remote.RemoteFileError: cannot download it"
    )
    assert str(error) == "cannot download it"


def test_thumbnail_raises_remote_errors_and_is_gray_for_a_damaged_file(tmp_path: Path):
    class Unreachable:
        def content(self) -> bytes:
            raise RemoteFileError("cannot download it")

    with pytest.raises(RemoteFileError):
        thumbnail(Unreachable())
    (tmp_path / "damaged.jpg").write_bytes(b"not an image")
    assert thumbnail(tmp_path / "damaged.jpg", 4).getpixel((0, 0)) == (128, 128, 128)


def test_remote_file_cache_never_exceeds_its_size_and_verifies_files(
    shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    files = ShardSource(str(shards), None, 0, 0).shards
    limit = 2 * max(file.size for file in files)
    cache = RemoteFileCache(web, None, 5, limit / 2**30)
    for file in files:
        assert cache.path(file).read_bytes() == (shards / file.name).read_bytes()
        assert sum(path.stat().st_size for path in (tmp_path / "shards").iterdir()) <= limit
    with pytest.raises(RemoteFileError, match=r"expected 000000000000… as packed"):
        cache.path(RemoteFile(files[0].name, files[0].size, "0" * 64))


def test_is_remote_says_what_to_install_without_boto3(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'flowers\[shards\]'"):
        is_remote("s3://bucket/shards")


def test_is_remote_refuses_an_unknown_kind_of_address():
    with pytest.raises(ValueError, match="starts with http, https, s3"):
        is_remote("ftp://example.org/shards")
