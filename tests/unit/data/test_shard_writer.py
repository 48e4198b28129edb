import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from flowers.data.datamodule import ImageDataModule
from flowers.data.shard_writer import write_shards
from flowers.data.sources.shards import ShardSource
from flowers.data.splits import load_split
from tests.helpers import packed


def test_shards_contain_the_bytes_and_the_split_of_the_folder(shards: Path, painted: Path):
    data = ImageDataModule.from_settings(shards, packed=True)
    folder = ImageDataModule.from_settings(painted, test_fraction=0.1)
    assert (data.records, data.classes, data.split_digest) == (folder.records, folder.classes, folder.split_digest)
    source = data.source
    assert isinstance(source, ShardSource)
    for record in data.records:
        assert (source / record.path).content() == (painted / record.path).read_bytes()
    manifest = json.loads((shards / "shards.json").read_text("utf-8"))
    assert (manifest["photos"], manifest["classes"]) == (60, folder.classes)


def test_shard_is_a_tar_file_in_the_layout_of_webdataset(shards: Path):
    records = load_split(shards / "split.csv")
    classes = ImageDataModule.from_settings(shards, packed=True).classes
    keys = []
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as file:
            members = file.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key = int(image.name.removesuffix(".jpg"))
                content = file.extractfile(label)
                assert label.name == f"{key:09}.cls"
                assert content is not None
                assert classes[int(content.read())] == records[key].label
                keys.append(key)
    assert sorted(keys) == list(range(60))


def test_run_packing_changes_nothing_when_repeated_and_refuses_other_folders(painted: Path, tmp_path: Path):
    first = packed(painted, tmp_path / "packed")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()}
    assert packed(painted, tmp_path / "packed") == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()}
    with pytest.raises(ValueError, match="shards of other images or settings"):
        packed(painted, tmp_path / "packed", "data.split_seed=7")
    with pytest.raises(ValueError, match="contains something else"):
        packed(painted, painted.parent)
    with pytest.raises(ValueError, match="is inside photos="):
        packed(painted, painted / "packed")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shard_mb=0", r"^shard_mb=0: expected a number, above 0$"),
        ("workers=0", r"^workers=0: expected a whole number, at least 1, or null$"),
        ("data.val_fraction=1.5", r"^data\.val_fraction=1\.5: expected a number, at least 0 and below 1$"),
    ],
)
def test_run_packing_refuses_invalid_settings(tmp_path: Path, setting: str, message: str):
    with pytest.raises(ValueError, match=message):
        packed(tmp_path / "missing", tmp_path / "packed", setting)


def test_run_packing_names_bad_images_and_ignores_them_on_request(folder: Path, tmp_path: Path):
    (folder / "lily" / "empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 21 files (.|\n)*lily/empty.jpg: empty"):
        packed(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    packed(folder, tmp_path / "packed", "data.on_corrupt=skip")
    assert len(ImageDataModule.from_settings(tmp_path / "packed", packed=True).records) == 20


def test_write_shards_stops_at_an_image_that_has_changed_since_its_check(folder: Path, tmp_path: Path):
    data = ImageDataModule.from_settings(folder)
    records = data.records
    (folder / records[3].path).write_bytes((folder / records[4].path).read_bytes())
    with pytest.raises(ValueError, match=f"{records[3].path} has changed"):
        write_shards(folder, records, data.classes, tmp_path / "packed", 1.0, 1)
    assert not list((tmp_path / "packed").glob("train-*.tar"))


def test_run_packing_writes_an_incomplete_shard_again(painted: Path, tmp_path: Path):
    complete, output = packed(painted, tmp_path / "complete"), tmp_path / "cut"
    shutil.copytree(tmp_path / "complete", output)
    (output / "shards.json").unlink()
    (output / "train-000001.tar").write_bytes(complete["train-000001.tar"][:1000])
    assert packed(painted, output) == complete


def test_shard_writer_imports_no_torch_for_its_workers():
    code = "import sys, flowers.data.shard_writer; print({'torch', 'lightning', 'scipy'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
