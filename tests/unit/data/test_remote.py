import errno
import io
import socket
from pathlib import Path
from typing import Self

import pytest
from filelock import FileLock

from flowers.data.remote import RemoteFile, RemoteFileCache, RemoteFileError, fetch_file, is_remote
from flowers.data.sources.shards import ShardSource
from flowers.evaluation.gallery import thumbnail


def test_fetch_file_tries_again_after_a_lost_connection(flaky_web: str, shards: Path, caplog: pytest.LogCaptureFixture):
    content = io.BytesIO(b"an older and longer content" * 1000)
    fetch_file(f"{flaky_web}/split.csv", content, 10**6, retry_timeout=5)
    assert content.getvalue() == (shards / "split.csv").read_bytes()
    assert "trying again" in caplog.text


def test_fetch_file_names_what_cannot_be_downloaded_in_one_line(web: str, s3: str):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # does not listen
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/shards.json"
        with pytest.raises(RemoteFileError, match=r"^cannot download http.*shards.json .*refused"):
            fetch_file(address, io.BytesIO(), 100, retry_timeout=0.1)
    for missing in (f"{web}/none/shards.json", "s3://garden/none/shards.json"):
        with pytest.raises(RemoteFileError, match=r"^cannot download .*shards.json .*404|NoSuchKey"):
            fetch_file(missing, io.BytesIO(), 100, s3_endpoint=s3, retry_timeout=5)


def test_fetch_file_stops_at_the_limit_of_an_endless_reply(endless_web: str):
    content = io.BytesIO()
    with pytest.raises(RemoteFileError, match=r"train-000000.tar has more than 5,000 bytes"):
        fetch_file(f"{endless_web}/train-000000.tar", content, 5000, retry_timeout=5)
    assert len(content.getvalue()) < 5e6


def test_fetch_file_does_not_try_again_when_the_disk_is_full(web: str, monkeypatch: pytest.MonkeyPatch):
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("time.sleep", None)
    with pytest.raises(OSError, match="No space left"):
        fetch_file(f"{web}/split.csv", Full(), 10**6, retry_timeout=5)


def test_remote_file_error_of_a_worker_is_one_line():
    error = RemoteFileError(
        "Caught RemoteFileError in a worker.\nTraceback:\nflowers.data.remote.RemoteFileError: cannot download it"
    )
    assert str(error) == "cannot download it"


def test_thumbnail_raises_remote_errors_and_is_gray_for_a_damaged_file(tmp_path: Path):
    class Unreachable:
        def __truediv__(self, path: str) -> Self:
            return self

        def content(self) -> bytes:
            raise RemoteFileError("cannot download it")

    with pytest.raises(RemoteFileError):
        thumbnail(Unreachable(), "a.jpg")
    (tmp_path / "damaged.jpg").write_bytes(b"not an image")
    assert thumbnail(tmp_path, "damaged.jpg", 4).getpixel((0, 0)) == (128, 128, 128)


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


def test_remote_file_cache_leaves_the_running_download_of_another_program(
    shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    first, second, third = ShardSource(str(shards), None, 0, 0).shards[:3]
    cache = RemoteFileCache(web, None, 5, max(file.size for file in (first, second, third)) / 2**30)
    kept = cache.path(second)
    partial = cache.folder / f".{first.sha256}.host.1.part"
    with FileLock(cache.folder / f".{first.sha256}.lock"):
        partial.write_bytes(bytes(first.size))
        assert cache.path(third).is_file()
        assert partial.stat().st_size == first.size
        assert not kept.exists()
    cache.path(second)  # the other program has been killed
    assert not partial.exists()


def test_remote_file_cache_says_that_a_download_was_deleted(
    shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def lose(address: str, file: io.BufferedWriter, *_: object) -> None:
        fetch_file(address, file, 10**9)
        Path(file.name).unlink()

    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    monkeypatch.setattr("flowers.data.remote.fetch_file", lose)
    file = ShardSource(str(shards), None, 0, 0).shards[0]
    with pytest.raises(RemoteFileError, match=r"another program deleted it meanwhile.: leave the folder alone"):
        RemoteFileCache(web, None, 5, 1).path(file)


def test_remote_file_cache_refuses_a_larger_file_before_it_evicts_others(
    shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    files = ShardSource(str(shards), None, 0, 0).shards
    cache = RemoteFileCache(web, None, 5, 2 * max(file.size for file in files) / 2**30)
    kept = cache.path(files[0])
    with pytest.raises(RemoteFileError, match=r"train-000001.tar has 9.3e\+05 GiB: expected at most data.cache_gb="):
        cache.path(RemoteFile("train-000001.tar", 10**15, "0" * 64))
    assert kept.exists()


@pytest.mark.parametrize("kind", ["changed", "folder"])
def test_remote_file_cache_replaces_a_damaged_copy(
    kind: str, shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    source = ShardSource(web, None, 5, 1)
    record = next(record for record in source.records if record.split == "train")
    expected = (source / record.path).content()
    assert source.cache is not None
    copy = source.cache.path(source.shards[int(source.shard_numbers([record.path])[0])])
    if kind == "changed":
        copy.write_bytes(bytes(copy.stat().st_size))
    else:
        copy.unlink()
        (copy / "something").mkdir(parents=True)
    assert (source / record.path).content() == expected
    assert f"{copy} is damaged" in caplog.text


def test_remote_file_cache_says_what_to_do_where_it_cannot_be_written(
    shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        RemoteFileError, match=r"cannot keep a copy of .*split.csv in .*file/shards .Not a directory.*FLOWERS_CACHE"
    ):
        _ = ShardSource(web, None, 5, 1).records


def test_remote_file_cache_says_that_the_disk_is_full(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(RemoteFileError, match=r"cannot keep a copy of .*split.csv.*disk full: .*it needs "):
        _ = ShardSource(web, None, 5, 1).records


def test_is_remote_says_what_to_install_without_boto3(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs boto3: pip install (-e|.*'boto3>=)"):
        is_remote("s3://bucket/shards")


def test_is_remote_refuses_an_unknown_kind_of_address():
    with pytest.raises(ValueError, match="starts with http, https, s3"):
        is_remote("ftp://example.org/shards")
