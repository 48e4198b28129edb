import errno
import os
import platform
import subprocess
from pathlib import Path

import pytest

from flowers.runtime.files import (
    DiskFullError,
    atomic_directory,
    atomic_write,
    atomic_write_text,
    cache_dir,
    cache_lock,
    chunk_by_time,
    evict_least_recently_used,
    open_regular,
    optional_cache,
    read_bounded,
    read_json,
    read_yaml,
    remove_stale_parts,
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


def test_atomic_write_deletes_what_a_dead_process_left_of_the_same_file(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale, other, running = (
        tmp_path / f".{name}.{platform.node()}.{process}.part"
        for name, process in (("file", ended.pid), ("other", ended.pid), ("file", os.getppid()))
    )
    for path in (stale, other, running):
        path.touch()
    atomic_write_text(tmp_path / "file", "text")
    assert [path.exists() for path in (stale, other, running)] == [False, True, True]


def test_atomic_write_refuses_a_file_that_does_not_fit(tmp_path: Path):
    path = tmp_path / "file"
    with (
        pytest.raises(
            DiskFullError, match=rf"disk full: cannot write {path} \(it needs 1,000,000,000,000.0 MB, .* free"
        ),
        atomic_write(path, size=10**18),
    ):
        pytest.fail("the block must not run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter: No space left on device")],
)
def test_atomic_write_says_that_the_disk_is_full(error: Exception, tmp_path: Path):
    with pytest.raises(DiskFullError, match=r"disk full: cannot write .*/file"), atomic_write(tmp_path / "file"):
        raise error
    assert not list(tmp_path.iterdir())


def test_write_json_keeps_names_that_are_not_utf8(tmp_path: Path):
    content = {"path": os.fsdecode(b"caf\xe9"), "label": "Löwenzahn"}
    write_json(content, tmp_path / "names.json")
    assert read_json(tmp_path / "names.json") == content
    assert "Löwenzahn" in (tmp_path / "names.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_read_json_names_a_damaged_file(content: bytes, tmp_path: Path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json cannot be read: it is damaged"):
        read_json(tmp_path / "x.json")


def test_optional_cache_logs_one_line_and_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").touch()
    with optional_cache(tmp_path / "file" / "cache"):
        (tmp_path / "file" / "cache").mkdir()
    assert caplog.messages == [f"cannot use the cache {tmp_path}/file/cache (Not a directory): continuing without it"]


def test_cache_lock_is_not_held_where_nothing_can_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with cache_lock(tmp_path / "file" / "cache" / ".lock") as is_held:
        assert not is_held
    with cache_lock(tmp_path / "cache" / ".lock") as is_held:
        assert is_held


def test_cache_dir_needs_no_home_folder(monkeypatch: pytest.MonkeyPatch):
    for name in ("FLOWERS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with optional_cache(cache_dir()):
        cache_dir().mkdir(parents=True)
        pytest.fail("a folder was created")


def test_atomic_write_follows_no_link_and_refuses_what_replaces_its_file(tmp_path: Path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    names = set[str]()
    for _ in range(2):
        with atomic_write(tmp_path / "file") as temporary:
            names.add(temporary.name)
            temporary.write_text("new")
    assert len(names) == 2  # nobody can plant a link under the next name
    assert [(tmp_path / "file").is_symlink(), (tmp_path / "file").read_text()] == [False, "new"]

    def replace_by_link() -> None:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.symlink_to(tmp_path / "target")

    with pytest.raises(OSError, match="another program has replaced"):
        replace_by_link()
    assert [(tmp_path / name).read_text() for name in ("target", "file")] == ["mine", "new"]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127])
def test_atomic_write_takes_the_longest_name(tmp_path: Path, name: str):
    atomic_write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_remove_stale_parts_deletes_own_files_of_dead_processes_only(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    own = f".file.{platform.node()}.{ended.pid}.{'0a' * 8}.part"
    others = [
        f".file.{platform.node()}.{os.getpid()}.{'0a' * 8}.part",  # is running
        f".file.elsewhere.{ended.pid}.{'0a' * 8}.part",
        f".file.{platform.node()}.{ended.pid}.notes.part",
        f"file.{platform.node()}.{ended.pid}.{'0a' * 8}.part",
    ]
    for name in (own, *others):
        (tmp_path / name).touch()
    link, folder = (tmp_path / f".file.{platform.node()}.{ended.pid}.{digit * 16}.part" for digit in "12")
    link.symlink_to(tmp_path / others[0])
    folder.mkdir()
    remove_stale_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, link.name, folder.name}


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), OSError(errno.ENOSPC, "full")])
def test_atomic_directory_names_the_folder_that_the_user_gave(tmp_path: Path, error: OSError):
    folder = tmp_path / "new"
    with pytest.raises(OSError, match="new") as raised, atomic_directory(folder) as temporary:  # noqa: SIM117
        with atomic_write(temporary / "weights"):
            raise error
    assert str(folder) in str(raised.value)
    assert ".part" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_error_says_few_bytes_as_they_are(tmp_path: Path):
    assert "(it needs 381 bytes, " in str(DiskFullError(tmp_path / "a.json", 381))


def test_atomic_directory_deletes_what_dead_processes_left_and_follows_no_link(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, link = (tmp_path / f".new.{platform.node()}.{ended.pid}.{digit * 16}.part" for digit in "12")
    left.mkdir()
    (tmp_path / "kept").mkdir()
    link.symlink_to(tmp_path / "kept")
    with atomic_directory(tmp_path / "new"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"new", "kept", link.name}


def test_open_regular_notices_a_fifo_that_replaced_the_file_after_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    status = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda _: status)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "fifo")


def test_read_bounded_opens_regular_files_of_a_size_only(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    assert read_bounded(tmp_path / "link", 5) == b"12345"
    for name, reason in (("file", "it has 5 bytes, expected at most 4"), ("device", "not a regular file")):
        with pytest.raises(OSError, match=reason):
            read_bounded(tmp_path / name, 4)
    with pytest.raises(OSError, match="not a regular file"):
        read_bounded(tmp_path / "fifo", 4)
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 4)


@pytest.mark.parametrize(
    "text",
    [
        *("a: &x 1\nb: *x", "!!python/object/apply:os.mkdir [x]", "[" * 5000, "a: 1: 2", "\0", "? {}\n: 1"),
        *(
            "a: !!int ''",
            "a: !!bool x",
            "a: 1" + ":59" * 200,
            f"a: {'9' * 401}.0",
            "a: !!int {=: 1" + ":59" * 200 + "}",
        ),
    ],
)
def test_read_yaml_names_what_is_no_plain_yaml(text: str, tmp_path: Path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"x\.yaml cannot be read: it is damaged"):
        read_yaml(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: ${oc.env:HOME}")
    assert read_yaml(tmp_path / "x.yaml") == {"a": "${oc.env:HOME}"}


def test_readers_refuse_a_sparse_file_before_they_read_it(tmp_path: Path):
    for name in ("x.json", "x.yaml"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 40 * 2**30)
    with pytest.raises(ValueError, match=r"x.json cannot be read: it has 42,949,672,960 bytes, expected at most"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"x.yaml cannot be read: it has 42,949,672,960 bytes, expected at most"):
        read_yaml(tmp_path / "x.yaml")
