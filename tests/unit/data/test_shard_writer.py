import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from flowers.data.datamodule import ImageDataModule
from flowers.data.shard_writer import write_shards
from flowers.data.shards import ShardSource
from flowers.data.splits import load_split
from tests.helpers import packed, program


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    """The garden in shards, and a test split."""
    output = tmp_path_factory.mktemp("shards") / "packed"
    packed(painted, output, "data.test_fraction=0.1")
    return output


def test_shards_hold_each_photos_own_bytes_and_the_split_that_training_from_the_folder_has(shards: Path, painted: Path):
    data = ImageDataModule(shards, packed=True)
    folder = ImageDataModule(painted, test_fraction=0.1)
    assert (data.records, data.classes, data.split_digest) == (folder.rows, folder.classes, folder.split_digest)
    assert data.shards is not None
    assert all((data.shards / row.path).content() == (painted / row.path).read_bytes() for row in data.records)
    manifest = json.loads((shards / "shards.json").read_text("utf-8"))
    assert (manifest["photos"], manifest["classes"]) == (60, folder.classes)


def test_a_shard_has_one_split_and_that_of_train_a_fair_sample(shards: Path):
    found = ShardSource(str(shards), None, 0, 0)
    for row, place in zip(found.rows, found.index.tolist(), strict=True):
        assert found.names[place[0]].name.startswith(row.split)
    first = [row for row, place in zip(found.rows, found.index.tolist(), strict=True) if place[0] == 0]
    assert len({row.label for row in first}) > 2  # of 5, in a shard of about 15 photos
    val = [row for row in found.rows if row.split == "val"]
    assert found.sort_by_shard(val) == val


def test_a_shard_is_a_tar_file_of_photos_and_classes_in_webdatasets_layout(shards: Path):
    rows = load_split(shards / "split.csv")
    classes = ImageDataModule(shards, packed=True).classes
    keys = []
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as file:
            members = file.getmembers()
            for photo, label in zip(members[::2], members[1::2], strict=True):
                key = int(photo.name.removesuffix(".jpg"))
                content = file.extractfile(label)
                assert label.name == f"{key:09}.cls"
                assert content is not None
                assert classes[int(content.read())] == rows[key].label
                keys.append(key)
    assert sorted(keys) == list(range(60))


def test_packed_again_nothing_changes_and_other_photos_or_settings_are_refused(painted: Path, tmp_path: Path):
    first = packed(painted, tmp_path / "packed")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()}
    assert packed(painted, tmp_path / "packed") == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()}
    with pytest.raises(ValueError, match="other photos or settings"):
        packed(painted, tmp_path / "packed", "data.split_seed=7")
    with pytest.raises(ValueError, match="holds something else"):
        packed(painted, painted.parent)
    with pytest.raises(ValueError, match="lies within"):
        packed(painted, painted / "packed")


def test_bad_photos_are_named_and_left_out_where_that_is_wanted(folder: Path, tmp_path: Path):
    (folder / "lily" / "empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 21 files (.|\n)*lily/empty.jpg: empty"):
        packed(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    packed(folder, tmp_path / "packed", "data.on_corrupt=skip")
    assert len(ImageDataModule(tmp_path / "packed", packed=True).rows) == 20


def test_a_photo_that_changes_after_its_check_ends_the_packing(folder: Path, tmp_path: Path):
    data = ImageDataModule(folder)
    rows = data.records
    (folder / rows[3].path).write_bytes((folder / rows[4].path).read_bytes())
    with pytest.raises(ValueError, match=f"{rows[3].path} has changed"):
        write_shards(folder, rows, data.classes, tmp_path / "packed", 1.0, 1)
    assert not list((tmp_path / "packed").glob("train-*.tar"))


def test_a_packing_killed_at_any_time_goes_on_to_the_same_shards(painted: Path, tmp_path: Path):
    whole, output = packed(painted, tmp_path / "whole", "shard_mb=0.01"), tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "flowers.pack",
        f"photos={painted}",
        f"output={output}",
        "shard_mb=0.01",
        "workers=1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while len(list(output.glob("*.tar"))) < 2 and process.poll() is None:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.read()  # ends once the workers have ended too
    assert not (output / "shards.json").exists()
    some = {path.name: path.read_bytes() for path in output.glob("*.tar")}
    assert 2 <= len(some) < len(whole) - 3
    assert all(whole[name] == content for name, content in some.items())
    (output / ".train-000007.tar.1.part").write_bytes(b"half")
    assert packed(painted, output, "shard_mb=0.01") == whole


def test_a_half_shard_is_not_taken_for_a_whole_one(painted: Path, tmp_path: Path):
    whole, output = packed(painted, tmp_path / "whole"), tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", output)
    (output / "shards.json").unlink()
    (output / "train-000001.tar").write_bytes(whole["train-000001.tar"][:1000])
    assert packed(painted, output) == whole


def test_a_users_mistake_is_one_line(painted: Path, tmp_path: Path):
    done = program(f"photos={tmp_path}/none", f"output={tmp_path}/packed", name="pack")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no folder of photos" in done.stderr
    with pytest.raises(ValueError, match="no shards at"):
        _ = ImageDataModule(painted, packed=True).rows
