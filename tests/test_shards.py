import functools
import signal
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from flowers import checkpoints, paths, results
from flowers.data import FlowersData
from flowers.evaluate import main as evaluate
from flowers.train import train
from tests.conftest import SMALL, configuration
from tests.test_packing import packed
from tests.test_train import program, weights

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "garden"
    packed(painted, folder)
    return folder


@pytest.fixture(scope="module")
def endpoint(shards: Path) -> Iterator[str]:
    """An S3-compatible server on this machine that holds the shards as s3://flowers/garden."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="flowers")
        for path in shards.iterdir():
            client.upload_file(str(path), "flowers", f"garden/{path.name}")
        client.close()
        yield f"http://{host}:{port}"
        server.stop()


def recipe(root: str, *given: str) -> list[str]:
    """Of a run on shards."""
    return [*SMALL[1:], "data=shards", f"data.root={root}", "data.mixed_shards=2", *given]


@pytest.fixture(scope="module")
def run(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through both stages from the server."""
    folder = tmp_path_factory.mktemp("run")
    given = recipe("s3://flowers/garden", f"data.endpoint={endpoint}", "model.architecture=mobilenet_v3_small")
    train(configuration(*given, f"run_dir={folder}"))
    return folder


def test_a_checkpoint_scores_the_same_on_shards_and_on_the_folder(run: Path, painted: Path):
    model = checkpoints.load(run / checkpoints.BEST)
    data = FlowersData(painted, image_size=32, resize=32, num_workers=0)
    assert model.hparams["split_digest"] == data.split_digest
    dataset = data.dataset("val")
    features = results.embed(model, data, dataset, "val", model.hparams["config"])
    said = results.predict(model, features, dataset, data.root)
    assert results.score(said) == results.load(run / results.RESULT)["val"]


def test_a_run_on_shards_is_evaluated_with_its_report(run: Path):
    accuracy = evaluate(configuration(f"run={run}", name="evaluate"))
    assert accuracy == results.load(run / results.RESULT)["val"]["accuracy"]
    assert "data:image" in (run / "report.html").read_text(encoding="utf-8")


def test_a_run_killed_inside_an_epoch_goes_on_there_and_ends_as_the_uninterrupted_one(
    run: Path, endpoint: str, tmp_path: Path
):
    given = recipe("s3://flowers/garden", f"data.endpoint={endpoint}", "model.architecture=mobilenet_v3_small")
    given += ["+callbacks.kill._target_=tests.killing.KillAt", "callbacks.within.minutes=0.00001"]
    first = program(*given, f"hydra.run.dir={tmp_path}", KILL_AT="3.2")
    assert first.returncode == -signal.SIGKILL, first.stderr
    last = program(f"resume={tmp_path}", KILL_AT="3.1")  # that batch is behind it
    assert last.returncode == 0, last.stderr
    ours, theirs = weights(tmp_path), weights(run)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_lost_connection_is_tried_again_then_named_in_one_line(
    endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    done = program(
        *recipe("s3://flowers/elsewhere", "data.patience=0.5", f"data.endpoint={endpoint}"),
        f"hydra.run.dir={tmp_path}/a",
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot get s3://flowers/elsewhere/shards.json (")
    assert done.stderr.count("\n") == 1
    with pytest.raises(ValueError, match=r"cannot get http://127\.0\.0\.1:9/x/shards\.json .*refused"):
        train(configuration(*recipe("http://127.0.0.1:9/x", "data.patience=1"), f"run_dir={tmp_path}/b"))
    assert "trying again" in caplog.text


def test_copies_of_remote_shards_take_no_more_room_than_given(
    shards: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    files = functools.partial(SimpleHTTPRequestHandler, directory=str(shards))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        room = 3 * max(path.stat().st_size for path in shards.glob("*.tar"))
        data = FlowersData(f"http://127.0.0.1:{server.server_port}", packed=True, cache_gb=room / 2**30, num_workers=0)
        for row in data.rows:
            assert (data.root / row.path).content() == (painted / row.path).read_bytes()  # type: ignore[attr-defined]
            assert sum(path.stat().st_size for path in (paths.cache() / "shards").iterdir()) <= room
        server.shutdown()
        thread.join()
