"""Log to TensorBoard in the run folder, also what other trackers do not show: embeddings and the HPARAMS tab."""

import colorsys
import math
import operator
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import text_format
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageOps
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from flowers.data.images import ImageRoot
from flowers.evaluation.gallery import thumbnail
from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.predictions import Predictions
from flowers.runs.run_folder import LAST_CHECKPOINT
from flowers.runtime.files import atomic_write, atomic_write_text
from flowers.runtime.text import one_line, printable
from flowers.training.event_checksum import use_fast_checksums
from flowers.training.trackers.tracker import Picture, Tracker

_PROJECTOR_IMAGES = 256
_PROJECTOR_SIDE, _PROJECTOR_FRAME = 40, 4  # of a thumbnail and its frame, in pixels
_SPRITES: list[tuple[list[Image.Image], list[str], Picture]] = []  # the last one, and what it shows

# The tab HPARAMS shows five hyperparameters, in the order of their names: unless told otherwise, those that begin with
# data and finetune.
_SEARCHED_MOST = ("finetune.backbone_lr", "model.architecture", "optimizer", "optimizer.lr", "seed")


def logged_steps(run_dir: str | Path) -> int:
    """Return the steps of the last checkpoint of a run: a resumed run logs what came after it once more."""
    last = Path(run_dir) / LAST_CHECKPOINT
    return int(read_checkpoint(last)["progress"]["steps"]) if last.exists() else 0


class TensorBoardTracker(Tracker, TensorBoardLogger):
    """Log to `<run_dir>/tensorboard`. It hides what an earlier session logged after its last checkpoint.

    `log_hyperparameters` logs the settings, as the row of the HPARAMS tab at the end.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        use_fast_checksums()
        steps = logged_steps(run_dir)
        super().__init__(run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=steps)

    @property
    def log_dir(self) -> str:
        """The folder as it is given: Lightning would replace `~` and `$NAME`."""
        return str(Path(self.root_dir, str(self.version)))

    def log_scalars(self, scalars: Mapping[str, float], step: int | None) -> None:
        """Log points of curves, but for the number of the epoch, which would be among the first ones that are shown."""
        curves = {name: value for name, value in scalars.items() if name != "train/epoch"}
        TensorBoardLogger.log_metrics(self, curves, step)

    def log_image(self, name: str, picture: Picture, step: int) -> None:
        """Log a picture. `add_image` of PyTorch compresses it for twice as long."""
        width, height = picture.image.size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=picture.encoded)
        self.experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def log_best_checkpoint(self, path: Path) -> None:
        """Log where the best checkpoint is."""
        self.experiment.add_text("best_checkpoint", printable(path))

    def how_to_watch(self) -> str:
        """Return the command that shows the run."""
        return f"to watch: tensorboard --logdir {shlex.quote(str(Path(self.root_dir)))}"


def log_embeddings(trainer: Trainer, features: Tensor, predictions: Predictions, root: ImageRoot) -> None:
    """Log features (N, F) of images below `root` for the PROJECTOR: 64 principal components, with thumbnails.

    The frame of a thumbnail has the color of its true class: the projector opens without a color map, and nothing that
    is logged can select one.
    """
    if not (loggers := tensorboard_loggers(trainer)):
        return
    indices = evenly_spaced(len(predictions), _PROJECTOR_IMAGES)
    centered = features[indices].double() - features[indices].double().mean(0)
    components = torch.linalg.svd(centered, full_matrices=False)
    points = (components.U * components.S)[:, :64].float()
    true, predicted = predictions.labels[indices].tolist(), predictions.predicted[indices].tolist()
    names = [one_line(name) for name in predictions.classes]
    labels = [[names[label], names[answer]] for label, answer in zip(true, predicted, strict=True)]
    colors = [
        "#" + "".join(f"{int(255 * part):02x}" for part in colorsys.hsv_to_rgb(label / len(names), 0.9, 0.9))
        for label in true
    ]
    sprite = _sprite([thumbnail(root, predictions.paths[index], _PROJECTOR_SIDE) for index in indices], colors)
    name = f"{trainer.global_step:05}/val"
    info = EmbeddingInfo(tensor_name=f"val:{trainer.global_step:05}", tensor_path=f"{name}/tensors.tsv")
    info.metadata_path, info.sprite.image_path = f"{name}/metadata.tsv", f"{name}/sprite.png"
    info.sprite.single_image_dim.extend([_PROJECTOR_SIDE + 2 * _PROJECTOR_FRAME] * 2)
    config = text_format.MessageToString(ProjectorConfig(embeddings=[info]))
    rows = {"tensors.tsv": points.tolist(), "metadata.tsv": [["true", "predicted"], *labels]}
    for logger in loggers:
        folder = Path(logger.log_dir)
        for file, cells in rows.items():
            text = "".join("\t".join(map(str, row)) + "\n" for row in cells)
            atomic_write_text(folder / name / file, text, durable=False)
        with atomic_write(folder / info.sprite.image_path, durable=False) as temporary:
            temporary.write_bytes(sprite.png)
        atomic_write_text(folder / "projector_config.pbtxt", config, durable=False)


def _sprite(thumbnails: list[Image.Image], colors: list[str]) -> Picture:
    """Return the thumbnails in rows, each in a frame of its color: of the same ones, as in the next job, the same."""
    for drawn, frames, picture in _SPRITES:
        if len(drawn) == len(thumbnails) and all(map(operator.is_, drawn, thumbnails)) and frames == colors:
            return picture
    columns, side = math.ceil(len(thumbnails) ** 0.5), _PROJECTOR_SIDE + 2 * _PROJECTOR_FRAME
    sheet = Image.new("RGB", (columns * side, columns * side))
    for number, (image, color) in enumerate(zip(thumbnails, colors, strict=True)):
        framed = ImageOps.expand(image, _PROJECTOR_FRAME, color)
        sheet.paste(framed, (number % columns * side, number // columns * side))
    _SPRITES[:] = [(thumbnails, colors, Picture(np.asarray(sheet)))]
    return _SPRITES[0][2]


def log_hyperparameters(trainer: Trainer, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Log one row of the HPARAMS tab, with the same columns for every run, so that the runs of a sweep compare.

    The columns have the names of the keys that one overrides. TensorBoard reads the metrics from scalars, which it also
    charts; `val_best` is the last group of charts, and only the first two are open at the start.

    Args:
        trainer: Its TensorBoard loggers are used.
        config: The configuration of the run.
        metrics: The scores of the best epoch by name.
    """
    optimizer, scheduler = config["optimizer"], config["scheduler"]
    row = {
        "data.balance": config["data"].get("balance", "none"),  # checkpoints of earlier versions have none
        "data.batch_size": config["data"]["batch_size"],
        "data.fold": config["data"].get("fold", 0),  # data=shards has no folds
        "data.image_size": config["data"]["image_size"],
        "finetune.backbone_lr": config["finetune"]["backbone_lr"],
        "finetune.epochs": config["finetune"]["epochs"],
        "head.cached_views": config["head"]["cached_views"],
        "head.epochs": config["head"]["epochs"],
        "model.architecture": config["model"]["architecture"],
        "model.weights": printable(config["model"]["weights"]),
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "optimizer.lr": optimizer["lr"],
        "optimizer.weight_decay": optimizer.get("weight_decay", 0.0),
        "scheduler": scheduler["_target_"].rpartition(".")[2],
        "seed": config["seed"],
        "trainer.precision": str(trainer.precision),
    }
    scalars = {f"val_best/{name}": value for name, value in metrics.items()}
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step=trainer.global_step)
    for logger in tensorboard_loggers(trainer):
        experiment, start, end = hparams(row, scalars)  # type: ignore[no-untyped-call]
        _show_first(experiment, _SEARCHED_MOST)
        writer = logger.experiment._get_file_writer()
        for summary in (experiment, start, end):
            writer.add_summary(summary, trainer.global_step)


def _show_first(experiment: Any, names: Collection[str]) -> None:
    """Let TensorBoard show these hyperparameters first, as it does with those that differ between runs."""
    (value,) = experiment.value
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    value.metadata.plugin_data.content = content.SerializeToString()


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers of a trainer; none on ranks other than the first."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero]


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return at most `count` indices from 0 to `length` - 1."""
    return [int(index) for index in torch.linspace(0, length - 1, min(count, length)).long()]
