"""MLflow and Weights & Biases with their own packages, in files on this machine: no server, no account."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from flowers.training.online_trackers import local_tracking_uri, make_mlflow_tracker, make_wandb_tracker
from flowers.training.trackers import (
    Tracker,
    end_run,
    log_best_checkpoint,
    log_image,
    log_page,
    make_loggers,
    start_run,
)
from tests.helpers import configuration

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages warn of what they themselves will change


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def own_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("flowers")]


def log_a_run(tracker: Tracker, settings: dict[str, Any], loss: float, step: int) -> None:
    tracker.call(lambda logger: start_run(logger, settings))
    tracker.log_metrics({"val/loss": loss}, step)
    tracker.call(lambda logger: log_image(logger, "val/confusion", np.zeros((4, 5, 3), np.uint8), step))
    tracker.call(lambda logger: log_best_checkpoint(logger, Path("best.ckpt")))
    tracker.call(lambda logger: end_run(logger, "success"))


def test_mlflow_lists_the_runs_of_a_group_below_one_and_continues_a_resumed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    mlflow = pytest.importorskip("mlflow")
    for number in range(2):
        run_dir = tmp_path / "lr" / str(number)
        run_dir.mkdir(parents=True)
        log_a_run(make_mlflow_tracker(run_dir, "multirun/lr", "garden", None), {"seed": number, "epochs": 1}, 2.0, 3)
    log_a_run(make_mlflow_tracker(run_dir, "multirun/lr", "garden", None), {"seed": 1, "epochs": 2}, 1.0, 7)

    client = mlflow.MlflowClient(local_tracking_uri())
    runs = {run.data.tags["mlflow.runName"]: run for run in client.search_runs(["1"])}
    assert set(runs) == {"multirun/lr", "lr/0", "lr/1"}
    resumed = runs["lr/1"]
    assert resumed.data.tags["mlflow.parentRunId"] == runs["multirun/lr"].info.run_id
    assert resumed.info.status == "FINISHED"
    assert resumed.data.params == {"seed": "1", "epochs": "1"}
    assert resumed.data.tags["resumed.epochs"] == "2"
    assert resumed.data.tags["best_checkpoint"] == "best.ckpt"
    history = client.get_metric_history(resumed.info.run_id, "val/loss")
    assert [(metric.step, metric.value) for metric in history] == [(3, 2.0), (7, 1.0)]
    images = [file.path for file in client.list_artifacts(resumed.info.run_id, "val")]
    assert images == ["val/confusion-000003.png", "val/confusion-000007.png"]
    assert own_lines(caplog) == []
    assert capsys.readouterr().out == ""


def test_evaluate_sends_its_page_to_the_trackers_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    mlflow, wandb = pytest.importorskip("mlflow"), pytest.importorskip("wandb")
    config = configuration("logger=[tensorboard,mlflow,wandb]", f"run_dir={tmp_path}")
    trackers = [logger for logger in make_loggers(config.logger, tmp_path) if isinstance(logger, Tracker)]
    for tracker in trackers:
        log_a_run(tracker, {}, 2.0, 3)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    (tmp_path / "report.html").write_text("<h1>scores</h1>", encoding="utf-8")
    log_page(tmp_path, tmp_path / "report.html")
    wandb.teardown()
    client = mlflow.MlflowClient(local_tracking_uri())
    files = [file.path for file in client.list_artifacts(trackers[0].version)]
    assert "report.html" in files
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "wandb").rglob("*.html")]
    assert pages == ["<h1>scores</h1>"]
    assert own_lines(caplog) == []


def test_wandb_makes_offline_runs_several_in_a_process(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    wandb = pytest.importorskip("wandb")
    ids = []
    for number in range(2):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        tracker = make_wandb_tracker(run_dir, "multirun/lr", "garden", "offline")
        log_a_run(tracker, {"seed": number}, 2.0, 3)
        ids.append(tracker.version)
    wandb.teardown()  # waits until the files are complete
    for number, run_id in enumerate(ids):
        (file,) = (tmp_path / str(number) / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
        content = file.read_bytes()
        assert [name in content for name in (b"multirun/lr", b"best_checkpoint", b"val/loss")] == [True] * 3
        assert len(list(file.parent.rglob("confusion*.png"))) == 1
    assert ids[0] != ids[1]
    assert own_lines(caplog) == []


def test_wandb_online_without_its_server_keeps_the_run_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("wandb").teardown()  # it reads the address once
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    log_a_run(make_wandb_tracker(tmp_path, None, "garden", "online"), {"seed": 0}, 2.0, 3)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    (message,) = own_lines(caplog)
    assert message.startswith("logger=wandb: Connection refused: this run is offline, later: wandb sync ")
