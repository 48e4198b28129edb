from pathlib import Path

import pytest
import torch
from lightning import Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from flowers.runs.predictions import Predictions
from flowers.training.pictures import log_predictions
from flowers.training.trackers.tensorboard import TensorBoardTracker, log_embeddings, log_hyperparameters
from tests.helpers import composed, configuration

NAMES = ["$x", "[/b]", "tab\tesc\x1b[31m", "cr\r\n", "bad\udce9"]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """A trainer that logs to a run folder with an awkward name."""
    return Trainer(logger=TensorBoardTracker(tmp_path / "$HOME"), accelerator="cpu", enable_checkpointing=False)


@pytest.fixture
def predictions() -> Predictions:
    labels = torch.arange(10) % 5
    return Predictions([f"{index}.png" for index in range(10)], labels, torch.eye(5).double()[labels.roll(1)], NAMES)


def events(tmp_path: Path) -> EventAccumulator:
    return EventAccumulator(str(tmp_path / "$HOME" / "tensorboard")).Reload()


def test_log_predictions_and_embeddings_take_any_class_name(
    trainer: Trainer, predictions: Predictions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    log_predictions(trainer, predictions, tmp_path, step=0)
    for _ in range(2):  # a resumed run does it again
        log_embeddings(trainer, torch.rand(10, 3), predictions, tmp_path)
    assert capsys.readouterr().out == ""
    (metadata,) = (tmp_path / "$HOME").rglob("metadata.tsv")
    header, *rows = metadata.read_text(encoding="utf-8").split("\n")[:-1]
    assert header == "true\tpredicted"
    assert [row.split("\t")[0] for row in rows] == ["$x", "[/b]", r"tab\tesc\x1b[31m", r"cr\r\n", r"bad\udce9"] * 2
    trainer.loggers[0].finalize("success")
    assert "val/confusion" in events(tmp_path).Tags()["images"]


def test_log_embeddings_frames_a_thumbnail_in_the_color_of_its_class(
    trainer: Trainer, predictions: Predictions, tmp_path: Path
):
    log_embeddings(trainer, torch.rand(10, 3), predictions, tmp_path)
    (path,) = (tmp_path / "$HOME").rglob("sprite.png")
    with Image.open(path) as sprite:
        corners = [sprite.getpixel((index % 4 * 48, index // 4 * 48)) for index in range(10)]
    assert corners[:5] == corners[5:]
    assert len(set(corners)) == 5


def test_log_hyperparameters_has_the_names_of_the_keys_and_shows_those_searched_most_first(
    trainer: Trainer, tmp_path: Path
):
    config = configuration("run_dir=x", "data.root=y").to_dict()
    log_hyperparameters(trainer, config, {"accuracy": 0.5})
    trainer.loggers[0].finalize("success")
    summaries = events(tmp_path).summary_metadata
    (start, experiment) = (
        HParamsPluginData.FromString(summaries[f"_hparams_/{name}"].plugin_data.content)
        for name in ("session_start_info", "experiment")
    )
    keys = set(start.session_start_info.hparams)
    assert keys >= {"optimizer.lr", "model.architecture", "finetune.backbone_lr"}
    composed("run_dir=x", "data.root=y", *(f"{key}=1" for key in keys - {"optimizer", "scheduler"}))
    infos = sorted(experiment.experiment.hparam_infos, key=lambda info: (not info.differs, info.name))  # as TensorBoard
    first = [info.name for info in infos[:5]]
    assert first == ["finetune.backbone_lr", "model.architecture", "optimizer", "optimizer.lr", "seed"]
    assert [info.name.tag for info in experiment.experiment.metric_infos] == ["val_best/accuracy"]


def test_curves_are_in_the_groups_train_and_val_which_tensorboard_opens(trainer: Trainer, tmp_path: Path):
    trainer.loggers[0].log_metrics({"epoch": 0.0, "lr/head": 1.0, "train/loss": 1.0, "val/loss": 1.0}, step=0)
    log_hyperparameters(trainer, configuration("run_dir=x", "data.root=y").to_dict(), {"accuracy": 0.5})
    trainer.loggers[0].finalize("success")
    groups = sorted({tag.partition("/")[0] for tag in events(tmp_path).Tags()["scalars"]})
    assert groups == ["train", "val", "val_best"]
