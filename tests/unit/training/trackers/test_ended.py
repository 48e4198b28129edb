"""MLflow and Weights & Biases with their own packages, in files on this machine: no server, no account."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from flowers.runtime.files import write_json
from flowers.training.trackers.ended import log_page
from flowers.training.trackers.mlflow import local_tracking_uri, make_mlflow_tracker
from flowers.training.trackers.server import ServerTracker
from flowers.training.trackers.session import make_loggers
from flowers.training.trackers.tracker import Picture
from flowers.training.trackers.wandb import make_wandb_tracker
from tests.helpers import configuration

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages warn of what they themselves will change


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def own_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("flowers")]


def log_a_run(tracker: ServerTracker, settings: dict[str, Any], loss: float, step: int) -> None:
    tracker.log_settings(settings)
    tracker.log_metrics({"val/loss": loss}, step)
    tracker.log_image("val/confusion", Picture(np.zeros((4, 5, 3), np.uint8)), step)
    tracker.log_best_checkpoint(Path("best.ckpt"))
    tracker.finish("success")


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
    trackers = [logger for logger in make_loggers(config.logger.parts(), tmp_path) if isinstance(logger, ServerTracker)]
    for tracker in trackers:
        log_a_run(tracker, {}, 2.0, 3)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config.to_dict()), encoding="utf-8")
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


_SAVE = {"_target_": "numpy.savetxt", "fname": "PWNED", "X": [1]}


@pytest.mark.parametrize(
    "logger",
    [
        {"mlflow": _SAVE, "wandb": _SAVE, "mine": _SAVE},
        {"mlflow": {"_target_": "torch.hub.load", "repo_or_dir": ".", "source": "local", "model": "x"}},
        {"mlflow": {"_target_": "flowers.training.trackers.mlflow.make_mlflow_tracker", "run_dir": _SAVE}},
        {"mlflow": {"tracking_uri": "sqlite:///PWNED"}},
        {"mlflow": "${oc.create:${oc.decode:1}}"},
    ],
)
def test_log_page_calls_nothing_that_a_run_folder_names(
    tmp_path: Path, logger: object, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "wandb").symlink_to(tmp_path / "PWNED")
    (tmp_path / "hubconf.py").write_text("open('PWNED', 'w')")
    write_json({"logger": logger}, tmp_path / "config.yaml")  # JSON is YAML
    write_json({"mlflow": "x", "wandb": "x", "mine": "x"}, tmp_path / "trackers.json")
    before = sorted(path.name for path in tmp_path.iterdir())
    log_page(tmp_path, tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert sorted(line.split(": ")[-1] for line in own_lines(caplog)) == ["it gets no page"] * 3


@pytest.mark.parametrize("text", ["!!python/object/apply:os.mkdir [PWNED]", "- a", "{", "a: 1: 2"])
def test_log_page_refuses_a_damaged_configuration(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    write_json({"mlflow": "x"}, tmp_path / "trackers.json")
    with pytest.raises(ValueError, match=r"config.yaml cannot be read: it is damaged"):
        log_page(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "ids",
    [
        {"mlflow": "../x"},
        {"mlflow": "a'b"},
        {"mlflow": "x\n"},
        {"mlflow": ["x"]},
        {"mlflow": "x" * 129},
        {"../a": "x"},
        {str(number): "x" for number in range(17)},
    ],
)
def test_log_page_refuses_ids_that_are_no_plain_names(tmp_path: Path, ids: dict[str, object]):
    write_json(ids, tmp_path / "trackers.json")
    with pytest.raises(ValueError, match=r"trackers.json is damaged: ids=.*: expected names of trackers and their ids"):
        log_page(tmp_path, tmp_path / "report.html")


def test_log_page_names_a_tracker_that_the_configuration_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_json({"logger": None}, tmp_path / "config.yaml")  # resumed with logger=none
    write_json({"mlflow": "x"}, tmp_path / "trackers.json")
    log_page(tmp_path, tmp_path / "report.html")
    (line,) = own_lines(caplog)
    assert line.startswith(f"{tmp_path / 'trackers.json'}: mlflow: expected mlflow or wandb, as its config.yaml has it")
