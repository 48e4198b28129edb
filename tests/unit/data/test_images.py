import io
import os
from pathlib import Path

import pytest
from PIL import Image

from flowers.data.images import check_images, read_image


def spoil(folder: Path, good: Image.Image) -> list[str]:
    """Files that no one can read, each for a reason of its own."""
    good.save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a photo", encoding="utf-8")
    (folder / "away.jpg").symlink_to(folder / "nowhere.jpg")
    return ["truncated.jpg", "empty.jpg", "text.jpg", "away.jpg"]


def test_each_bad_file_has_its_reason(tmp_path: Path, photo):
    verdicts = check_images(tmp_path, ["whole.jpg", *spoil(tmp_path, photo(0))])
    reasons = {path: verdict.reason for path, verdict in verdicts.items()}
    assert reasons.pop("whole.jpg") == ""
    assert "truncated" in reasons["truncated.jpg"]
    assert reasons["empty.jpg"] == "empty"
    assert "not a JPEG" in reasons["text.jpg"]
    assert "No such file" in reasons["away.jpg"]


def test_a_decompression_bomb_is_refused_unopened(tmp_path: Path):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "bomb.png")
    Image.new("1", (10_000, 9_500)).save(tmp_path / "large.png")
    verdicts = check_images(tmp_path, ["bomb.png", "large.png"])
    assert all("over the limit" in verdict.reason for verdict in verdicts.values())


def test_a_second_call_reads_only_what_has_changed(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        photo(number).save(tmp_path / f"{number}.png")
    files = ["0.png", "1.png", "2.png"]
    first = check_images(tmp_path, files)
    (tmp_path / "1.png").write_bytes(b"")

    monkeypatch.setattr("flowers.data.images.read_image", None)  # an empty file is not even given to it
    second = check_images(tmp_path, files)
    assert second["0.png"] == first["0.png"]
    assert second["1.png"].reason == "empty"


def test_a_check_that_was_cut_off_goes_on(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    files = [f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        photo(number).save(tmp_path / file)
    read, last = read_image, (tmp_path / files[3]).read_bytes()

    def cut_off(file: io.BytesIO) -> Image.Image:
        if file.getvalue() == last:
            raise KeyboardInterrupt
        return read(file)

    monkeypatch.setattr("flowers.runtime.files.CHUNK_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("flowers.data.images.read_image", cut_off)
        with pytest.raises(KeyboardInterrupt):
            check_images(tmp_path, files)

    for file in files[:3]:  # of the same size and time of change, and no photo: it was read before
        status, path = (tmp_path / file).stat(), tmp_path / file
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [verdict.reason for verdict in check_images(tmp_path, files).values()] == [""] * 4


def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    photo(0).save(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        assert "Permission denied" in check_images(tmp_path, ["a.png"])["a.png"].reason
    assert check_images(tmp_path, ["a.png"])["a.png"].reason == ""


def test_the_cache_of_a_broken_disk_is_read_again(tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    photo(0).save(tmp_path / "photos" / "a.png")
    first = check_images(tmp_path / "photos", ["a.png"])
    (kept,) = (tmp_path / "cache" / "verdicts").glob("*.json")
    kept.write_text("{half a", encoding="utf-8")
    assert check_images(tmp_path / "photos", ["a.png"]) == first
