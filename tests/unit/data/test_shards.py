import signal
import socket
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from flowers.data.datamodule import ImageDataModule
from flowers.data.remote import RemoteFile, RemoteFileCache, RemoteFileError, fetch_file, is_remote
from flowers.evaluate import main
from flowers.evaluation.evaluator import extract_features, predict_features
from flowers.evaluation.gallery import thumbnail
from flowers.evaluation.metrics import score
from flowers.models.classifier import load_classifier, read_checkpoint
from flowers.runtime.files import read_json
from flowers.runtime.run_folder import BEST_CHECKPOINT
from flowers.runtime.seeding import PADDING_INDEX
from flowers.training.experiment import run_training
from tests.helpers import SMALL, configuration, packed, program, weights

LOOK: dict[str, Any] = {"image_size": 32, "resize": 32, "batch_size": 16, "num_workers": 0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    output = tmp_path_factory.mktemp("shards") / "packed"
    packed(painted, output)
    return output


@pytest.fixture(scope="module")
def s3(shards: Path) -> Iterator[str]:
    """The s3_endpoint of an S3-compatible server on this machine that has the shards at s3://garden/packed."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="garden")
        for path in shards.iterdir():
            client.upload_file(str(path), "garden", f"packed/{path.name}")
        yield f"http://{host}:{port}"
        server.stop()


class Unsteady(SimpleHTTPRequestHandler):
    """Serves a folder, and breaks off so many answers in the middle first."""

    breaks = 0

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if type(self).breaks:
            type(self).breaks -= 1
            outputfile.write(source.read(100))
            return
        super().copyfile(source, outputfile)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def web(shards: Path) -> Iterator[str]:
    """The address of the shards on a plain web server."""

    def handler(*arguments: Any) -> Unsteady:
        return Unsteady(*arguments, directory=str(shards))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def remote_data(root: str, **settings: Any) -> ImageDataModule:
    return ImageDataModule(root, packed=True, retry_timeout=5, **LOOK, **settings)


def test_photos_from_s3_and_the_web_are_those_of_the_folder(painted: Path, s3: str, web: str):
    folder = ImageDataModule(painted, **LOOK)
    for data in (remote_data("s3://garden/packed", s3_endpoint=s3), remote_data(web)):
        assert data.split_digest == folder.split_digest
        for ours, theirs in zip(data.val_dataloader(), folder.val_dataloader(), strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_workers_fetch_and_an_epoch_of_training_is_the_same_from_afar(shards: Path, s3: str):
    far = remote_data("s3://garden/packed", s3_endpoint=s3)
    far.num_workers = 2
    near = ImageDataModule(shards, packed=True, **LOOK)
    for ours, theirs in zip(far.train_dataloader(), near.train_dataloader(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_each_of_two_processes_needs_its_half_of_validation(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packed(painted, tmp_path / "packed", "shard_mb=0.01")
    needed, count = list[set[int]](), 0
    for number in range(2):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.get_rank", lambda number=number: number)
        data, told = ImageDataModule(tmp_path / "packed", packed=True, **LOOK), set[int]()
        assert data.shards is not None
        monkeypatch.setattr(data.shards, "prefetch", told.add)
        count += sum(int((labels != PADDING_INDEX).sum()) for _, labels in data.val_dataloader())
        needed.append(told)
    assert count == len(data.dataset("val"))
    assert len(needed[0] & needed[1]) <= 1 < min(map(len, needed))


def test_a_lost_connection_is_tried_again(web: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Unsteady.breaks = 1
    fetch_file(f"{web}/split.csv", tmp_path / "split.csv", retry_timeout=5)
    assert (tmp_path / "split.csv").stat().st_size > 100
    assert "trying again" in caplog.text


def test_what_cannot_be_had_is_named_in_one_line(web: str, s3: str, tmp_path: Path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # does not listen
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"cannot get http.*shards.json .*refused"):
            _ = ImageDataModule(address, packed=True, retry_timeout=0.1).rows
    for lost in (remote_data(f"{web}/none"), remote_data("s3://garden/none", s3_endpoint=s3)):
        with pytest.raises(ValueError, match=r"^cannot get .*shards.json .*404|NoSuchKey"):
            _ = lost.rows
    error = RemoteFileError(
        "Caught RemoteFileError in a worker.\nTraceback:\nflowers.data.remote.RemoteFileError: cannot get it"
    )
    assert str(error) == "cannot get it"


def test_a_thumbnail_that_is_lost_ends_the_page_and_a_broken_one_is_grey(tmp_path: Path):
    class Lost:
        def content(self) -> bytes:
            raise RemoteFileError("cannot get it")

    with pytest.raises(RemoteFileError):
        thumbnail(Lost())
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    assert thumbnail(tmp_path / "broken.jpg", 4).getpixel((0, 0)) == (128, 128, 128)


def test_copies_never_take_more_than_the_cache_may_have(
    shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    files = [RemoteFile(*shard) for shard in ImageDataModule(shards, packed=True).shards.names]  # type: ignore[union-attr]
    most = 2 * max(file.size for file in files)
    mirror = RemoteFileCache(web, None, 5, most / 2**30)
    for file in files:
        assert mirror.path(file).read_bytes() == (shards / file.name).read_bytes()
        assert sum(path.stat().st_size for path in (tmp_path / "shards").iterdir()) <= most
    with pytest.raises(ValueError, match=r"is not what was packed"):
        mirror.path(files[0]._replace(sha256="0" * 64))
    with pytest.raises(ValueError, match=r"data.cache_gb=.*wanted at least"):
        remote_data(web, cache_gb=1e-6).train_dataloader()


def test_a_checkpoint_scores_the_same_on_shards_as_on_the_folder(painted: Path, s3: str, tmp_path: Path):
    recipe = [*SMALL, f"run_dir={tmp_path / 'folder'}", f"data.root={painted}", "head.epochs=1", "finetune.epochs=0"]
    run_training(configuration(*recipe))
    kept = read_checkpoint(tmp_path / "folder" / BEST_CHECKPOINT)["hyper_parameters"]["config"]
    model = load_classifier(tmp_path / "folder" / BEST_CHECKPOINT)
    scores = []
    for data in (ImageDataModule(painted, **LOOK), remote_data("s3://garden/packed", s3_endpoint=s3)):
        dataset = data.dataset("val")
        features = extract_features(model, data, dataset, "val", kept | {"features": {"cache": False, "max_gb": 1}})
        scores.append(score(predict_features(model, features, dataset)))
    assert scores[0] == scores[1]


def test_trained_from_s3_killed_inside_an_epoch_and_resumed_it_is_the_uninterrupted_run(s3: str, tmp_path: Path):
    recipe = [option for option in SMALL if option != "data=folder"]
    recipe += ["model.architecture=mobilenet_v3_small"]  # it draws dropout
    recipe += ["data=shards", "data.root=s3://garden/packed", f"data.s3_endpoint={s3}", "data.shuffle_shards=2"]
    recipe += ["head.epochs=1", "finetune.epochs=1", "callbacks.mid_epoch.minutes=0.00001"]
    recipe += ["+callbacks.kill._target_=tests.helpers.KillAt"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_training(configuration(*recipe, f"run_dir={whole}"))
    assert program(*recipe, f"hydra.run.dir={killed}", KILL_AT="1.2").returncode == -signal.SIGKILL
    other = program(f"resume={killed}", "data.batch_size=8")
    assert other.returncode == 1
    assert "inside an epoch with data.batch_size=16 and 1 process(es), found data.batch_size=8" in other.stderr
    last = program(f"resume={killed}", KILL_AT="1.1")  # that batch is behind it
    assert last.returncode == 0, last.stderr
    ours, theirs = weights(killed), weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read_json(killed / "result.json")["val"] == read_json(whole / "result.json")["val"]
    main(configuration(f"run={killed}", name="evaluate"))
    assert "data:image" in (killed / "report.html").read_text(encoding="utf-8")


def test_without_boto3_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'flowers\[shards\]'"):
        is_remote("s3://bucket/shards")


def test_an_address_is_no_folder_of_photos():
    with pytest.raises(ValueError, match="wanted data=shards"):
        ImageDataModule("https://example.org/photos")
    with pytest.raises(ValueError, match="starts with http, https, s3"):
        ImageDataModule("ftp://example.org/photos", packed=True)
