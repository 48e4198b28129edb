import os
from pathlib import Path

import pytest

from flowers.runtime.files import (
    atomic_directory,
    atomic_write,
    atomic_write_text,
    cache_dir,
    chunk_by_time,
    evict_least_recently_used,
    read_json,
    write_json,
)


def make_files(folder: Path, sizes: list[int]) -> list[Path]:
    """Files of these sizes; the first was used longest ago."""
    paths = [folder / str(number) for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(bytes(size))
        os.utime(path, (number, number))
    return paths


@pytest.mark.parametrize(
    ("max_bytes", "remaining"), [(60, [0, 1, 2, 3]), (59, [1, 2, 3]), (30, [1, 3]), (0, [1]), (-5, [1])]
)
def test_eviction_deletes_the_oldest_files_until_the_rest_fits(max_bytes: int, remaining: list[int], tmp_path: Path):
    paths = make_files(tmp_path, [10, 0, 20, 30])
    evict_least_recently_used(reversed(paths), max_bytes)
    assert [number for number, path in enumerate(paths) if path.exists()] == remaining


def test_eviction_spares_a_file_that_was_used_again(tmp_path: Path):
    paths = make_files(tmp_path, [10, 10, 10])
    os.utime(paths[0])
    evict_least_recently_used(paths, 20)
    assert [path.exists() for path in paths] == [True, False, True]


def test_eviction_ignores_files_that_another_process_deleted(tmp_path: Path):
    evict_least_recently_used([tmp_path / "missing", *make_files(tmp_path, [10])], 10)
    assert (tmp_path / "0").exists()


def test_atomic_write_leaves_the_old_content_after_an_error(tmp_path: Path):
    path = tmp_path / "new folder" / "file"
    atomic_write_text(path, "old\r\n")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        _ = temporary.write_bytes(b"new") / 0
    assert path.read_bytes() == b"old\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_text_writes_the_bytes_of_an_undecodable_file_name(tmp_path: Path):
    atomic_write_text(tmp_path / "names", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "names").read_bytes() == b"caf\xe9"


def test_atomic_directory_appears_whole_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "folder"
    with pytest.raises(FileExistsError), atomic_directory(folder) as temporary:
        temporary.mkdir()
    assert not list(tmp_path.iterdir())
    (tmp_path / ".folder.part").mkdir()
    (tmp_path / ".folder.part" / "left by a killed process").touch()
    with atomic_directory(folder) as temporary:
        (temporary / "file").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "file"]


@pytest.mark.parametrize(("seconds", "chunks"), [(0.0, [[1], [2], [3]]), (1e9, [[1, 2, 3]])])
def test_chunk_by_time_yields_every_item_once(seconds: float, chunks: list[list[int]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowers.runtime.files.CHUNK_SECONDS", seconds)
    assert list(chunk_by_time([1, 2, 3])) == chunks
    assert list(chunk_by_time([])) == []


def test_write_json_reads_back_and_refuses_nan(tmp_path: Path):
    content = {"classes": ["Gänseblümchen"], "accuracy": 0.1}
    write_json(content, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == content
    assert "Gänseblümchen" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": float("nan")}, tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWERS_CACHE", "/a")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("FLOWERS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/b/flowers")
