from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from flowers.training.trackers.csv import CSVTracker
from flowers.training.trackers.server import ServerTracker
from flowers.training.trackers.session import hyperparameters, make_loggers, tracked, watch_lines
from flowers.training.trackers.tensorboard import TensorBoardTracker
from flowers.training.trackers.tracker import Tracker
from tests.helpers import composed, configuration


class Server(Tracker):
    """A tracker that keeps what it is told, while `is_up`."""

    name, version = "server", "id-1"

    def __init__(self) -> None:
        super().__init__()
        self.is_up, self.told, self.opened = True, list[Any](), list[str | None]()

    def open(self, run_id: str | None) -> Tracker:
        self.opened.append(run_id)
        return self

    def log_scalars(self, scalars: Any, step: int | None) -> None:
        if not self.is_up:
            raise RuntimeError("no answer\nat all") from ConnectionRefusedError(111, "Connection refused")
        self.told.append((step, scalars))

    def log_settings(self, settings: Any) -> None:
        self.told.append(settings)

    def finish(self, status: str) -> None:
        self.told.append(status)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def tracker(server: Server, tmp_path: Path) -> ServerTracker:
    return ServerTracker("lab", tmp_path, server.open, "http://lab")


def test_tracker_that_loses_its_server_says_so_once_and_goes_on_in_the_run_folder(
    server: Server, tracker: ServerTracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tracker.fallback = CSVTracker(tmp_path)
    tracker.log_metrics({"loss": 3.0}, 0)
    server.is_up = False
    for step in (1, 2):
        tracker.log_metrics({"loss": 3.0 - step}, step)
        tracker.save()
    assert server.told == [(0, {"train/loss": 3.0})]
    assert [record.getMessage() for record in caplog.records] == [
        f"logger=lab: Connection refused: it gets no more of this run; {tmp_path / 'csv'} does"
    ]
    lines = (tmp_path / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["step,train/loss", "1,2.0", "2,1.0"]


def test_tracker_whose_server_is_away_from_the_start_leaves_the_run_to_another_tracker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def away(run_id: str | None) -> Tracker:
        raise TimeoutError("timed out")

    tracker = ServerTracker("lab", tmp_path, away, "http://lab")
    tracker.log_metrics({"loss": 3.0}, 0)
    assert caplog.messages == ["logger=lab: TimeoutError: timed out: it gets no more of this run"]


def test_tracker_of_a_resumed_run_opens_the_same_run(server: Server, tracker: ServerTracker, tmp_path: Path):
    tracker.log_metrics({"loss": 3.0}, 0)
    ServerTracker("lab", tmp_path, server.open, "http://lab").log_metrics({"loss": 2.0}, 1)
    assert server.opened == [None, "id-1"]


def test_tracker_is_silent_on_other_ranks(server: Server, tracker: ServerTracker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    tracker.log_metrics({"loss": 3.0}, 0)
    assert server.opened == []


@pytest.mark.parametrize(
    ("error", "status"), [(None, "success"), (ValueError(), "failed"), (KeyboardInterrupt(), "KILLED")]
)
def test_tracked_tells_the_settings_and_how_the_run_ended(
    server: Server, tracker: ServerTracker, error: BaseException | None, status: str
):
    trainer = Trainer(logger=tracker, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(type(error)) if error else nullcontext(), tracked(trainer, configuration("run_dir=x")):
        tracker.finalize("success")  # the end of a stage
        if error:
            raise error
    assert server.told[0]["optimizer.lr"] == 1e-4
    assert server.told[-1] == status


def test_hyperparameters_are_the_keys_that_one_overrides():
    settings = hyperparameters(configuration("run_dir=x", "logger=[csv,wandb]", "data.crop_scale=[0.5,1]"))
    assert settings["data.crop_scale"] == [0.5, 1]
    assert not [key for key in settings if key.startswith(("logger", "callbacks"))]
    composed(*(f"++{key}=1" for key in settings))


def test_make_loggers_keeps_a_run_in_its_folder_if_nothing_else_does(tmp_path: Path):
    groups = configuration(f"run_dir={tmp_path}", "logger=[mlflow,wandb]").logger.parts()
    first, second = make_loggers(groups, tmp_path)
    assert isinstance(first, ServerTracker)
    assert isinstance(second, ServerTracker)
    assert first.fallback is not None
    assert second.fallback is None
    with_csv = make_loggers(configuration(f"run_dir={tmp_path}", "logger=[mlflow,csv]").logger.parts(), tmp_path)
    assert isinstance(with_csv[0], ServerTracker)
    assert with_csv[0].fallback is None


def test_watch_lines_name_each_tracker_without_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@lab:5000")
    groups = configuration(f"run_dir={tmp_path}", "logger=[tensorboard,csv,mlflow]").logger.parts()
    assert watch_lines(make_loggers(groups, tmp_path)) == [
        f"to watch: tensorboard --logdir {tmp_path}",
        f"curves: {tmp_path}/csv/metrics.csv",
        "mlflow: http://me:***@lab:5000",
    ]
    assert "secret" not in str(configuration(f"run_dir={tmp_path}", "logger=mlflow").to_dict())


def test_several_trackers_and_none(tmp_path: Path):
    assert list(configuration("logger=[tensorboard,csv]", "run_dir=x").logger.parts()) == ["tensorboard", "csv"]
    assert not configuration("logger=none").logger.parts()
    (logger,) = make_loggers(configuration(f"run_dir={tmp_path}").logger.parts(), tmp_path)
    assert isinstance(logger, TensorBoardTracker)


def test_any_other_logger_of_lightning_gets_curves_and_settings(tmp_path: Path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    with tracked(trainer, configuration("run_dir=x")):
        logger.log_metrics({"loss": 3.0}, 0)
        logger.save()
    assert "optimizer.lr: 0.0001" in (tmp_path / "hparams.yaml").read_text(encoding="utf-8")
    assert watch_lines([logger]) == []
