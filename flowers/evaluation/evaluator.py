"""Score a trained run on its own split or on other images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from flowers.data.datamodule import ImageDataModule, inference_data_args
from flowers.data.dataset import ImageDataset
from flowers.data.splits import SPLITS, load_split, split_sha256
from flowers.evaluation.gallery import save_mistakes, score_images
from flowers.evaluation.metrics import compute_metrics
from flowers.evaluation.predictions import Predictions
from flowers.evaluation.report import score_tables, write_report
from flowers.features.extractor import FeatureExtractor
from flowers.models.backbones import state_dict_sha256
from flowers.models.classifier import ImageClassifier, load_classifier, read_checkpoint
from flowers.runtime.config import did_you_mean
from flowers.runtime.files import write_json
from flowers.runtime.hardware import resolve_device, resolve_trainer_config
from flowers.runtime.run_folder import SPLIT_FILE, find_checkpoint

log = logging.getLogger(__name__)


def find_split_file(checkpoint: Path, digest: str) -> Path:
    """The split.csv in the run folder of `checkpoint`. Raises ValueError where it is missing or is not that one."""
    kept = checkpoint.resolve().parent.parent / SPLIT_FILE
    if not kept.is_file():
        raise ValueError(f"{checkpoint} lies in no run folder (no {kept}): give the photos to score with photos=FOLDER")
    if split_sha256(load_split(kept)) != digest:
        raise ValueError(f"{kept} is not the split that {checkpoint} was trained on: give photos=FOLDER")
    return kept


def run_evaluation(cfg: DictConfig) -> float:
    """Scores a run's best checkpoint, or a given one, on the photos that `cfg` names; returns the accuracy."""

    if cfg.split not in SPLITS:
        raise ValueError(f"split={cfg.split}: wanted {', '.join(SPLITS)}{did_you_mean(cfg.split, SPLITS)}")
    path = find_checkpoint(cfg.run)
    trained = read_checkpoint(path)["hyper_parameters"]
    settings = trained["config"]["data"]
    seen = inference_data_args(settings) | ({"on_corrupt": cfg.on_corrupt} if cfg.on_corrupt else {})
    if cfg.photos:
        name = cfg.photos
        data = ImageDataModule(cfg.photos, **seen | {"packed": False})
        dataset = data.full_dataset(trained["classes"])
    else:
        name = cfg.split
        split_file = find_split_file(path, trained["split_digest"])
        data = ImageDataModule(settings["root"], split_file=split_file, **seen)
        dataset = data.dataset(cfg.split)

    given = {name: cfg[name] for name in ("accelerator", "precision") if cfg[name] is not None}
    config = trained["config"] | {"trainer": trained["config"]["trainer"] | given}
    model = load_classifier(path)
    predictions = predict_features(model, extract_features(model, data, dataset, name, config), dataset)
    scored = compute_metrics(predictions)
    for table in score_tables(name, scored):
        Console().print(table)
    if cfg.output:
        write_json({name: scored}, cfg.output)
    folder = Path(cfg.report or (cfg.run if Path(cfg.run).is_dir() and not cfg.photos else ""))
    if folder != Path():
        suffix = "" if cfg.photos or cfg.split == "val" else f"-{cfg.split}"
        folder.mkdir(parents=True, exist_ok=True)
        save_mistakes(score_images(predictions), folder / f"mistakes{suffix}.csv")
        page = folder / f"report{suffix}.html"
        write_report(page, path.resolve().parent.parent, config, name, data.root, predictions, scored)
        Console().print(f"{page} and mistakes{suffix}.csv say more", soft_wrap=True, highlight=False)
    return float(scored["accuracy"])


def extract_features(
    model: ImageClassifier,
    data: ImageDataModule,
    dataset: ImageDataset,
    name: str,
    config: Mapping[str, Any],
) -> Tensor:
    """A model's features (N, F) of photos, computed on one device, on the CPU.

    The backbone is taken as frozen, as in the head stage; features of one that was never trained are kept.

    Args:
        model: whose backbone is asked; it is left in evaluation mode.
        data: how photos are read.
        dataset: the photos, as in validation.
        name: of the photos, for people.
        config: `trainer` and `features` of a run's configuration.
    """
    settings = resolve_trainer_config(config["trainer"])
    model.eval().to(resolve_device(settings["accelerator"]))
    keeping = dict(config["features"])
    keeping["cache"] = keeping["cache"] and state_dict_sha256(model.backbone) == model.hparams["weights_digest"]
    return FeatureExtractor(data, model, str(settings["precision"]), **keeping).extract(dataset, name)


@torch.inference_mode()
def predict_features(model: ImageClassifier, features: Tensor, dataset: ImageDataset) -> Predictions:
    """What a model's head says of features (N, F) of the photos of `dataset`."""
    logits = model(features.float().to(model.device)).double().cpu()
    return Predictions(dataset.paths, torch.tensor(dataset.labels), logits, model.classes)
