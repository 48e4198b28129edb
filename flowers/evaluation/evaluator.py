"""Score a trained run on its own split or on other images."""

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
from flowers.evaluation.report import write_report
from flowers.evaluation.tables import score_tables
from flowers.features.extractor import FeatureExtractor
from flowers.models.backbones import state_dict_sha256
from flowers.models.classifier import ImageClassifier, load_classifier, read_checkpoint
from flowers.runtime.files import write_json
from flowers.runtime.hardware import resolve_device, resolve_trainer_config
from flowers.runtime.run_folder import SPLIT_FILE, find_checkpoint, run_dir_of
from flowers.runtime.suggestions import did_you_mean
from flowers.runtime.text import one_line


def run_evaluation(cfg: DictConfig) -> float:
    """Score a run on one of its splits, or on the images in `cfg.photos`.

    Print tables, and write report.html and mistakes.csv to the run folder or to `cfg.report`.

    Returns:
        The accuracy.

    Raises:
        ValueError: There is no such run, split or device, or its images are missing.
    """
    if cfg.split not in SPLITS:
        hint = did_you_mean(cfg.split, SPLITS)
        raise ValueError(f"split={cfg.split}: expected one of {', '.join(SPLITS)}{hint}")
    checkpoint = find_checkpoint(cfg.run)
    hparams = read_checkpoint(checkpoint)["hyper_parameters"]
    requested = {key: cfg[key] for key in ("accelerator", "precision") if cfg[key] is not None}
    config = hparams["config"] | {"trainer": hparams["config"]["trainer"] | requested}
    config |= {"tta": cfg.tta or config["tta"]}
    resolve_device(resolve_trainer_config(config["trainer"])["accelerator"])  # fails before any image is read
    data, dataset, name = _open_images(cfg, checkpoint, hparams)
    model = load_classifier(checkpoint)
    predictions = predict_features(model, extract_features(model, data, dataset, name, config), dataset)
    scores = compute_metrics(predictions)
    console = Console(highlight=False, markup=False, emoji=False)
    for table in score_tables(name, scores, console.width):
        console.print(table)
    if cfg.output:
        write_json({name: scores}, cfg.output)
    folder = cfg.report or (cfg.run if Path(cfg.run).is_dir() and not cfg.photos else None)
    if folder:
        suffix = "" if cfg.photos or cfg.split == "val" else f"-{cfg.split}"
        page, mistakes = Path(folder, f"report{suffix}.html"), Path(folder, f"mistakes{suffix}.csv")
        save_mistakes(score_images(predictions), mistakes)
        write_report(page, run_dir_of(checkpoint), config, name, data.root, predictions, scores)
        console.print(f"details: {one_line(page)} and {mistakes.name}", soft_wrap=True)
    return float(scores["accuracy"])


def _open_images(
    cfg: DictConfig, checkpoint: Path, hparams: Mapping[str, Any]
) -> tuple[ImageDataModule, ImageDataset, str]:
    """Return the data module and the dataset to score, and its name for tables."""
    settings = hparams["config"]["data"]
    arguments = inference_data_args(settings) | ({"on_corrupt": cfg.on_corrupt} if cfg.on_corrupt else {})
    arguments |= {"corrections": cfg.corrections}
    if cfg.photos:
        data = ImageDataModule(cfg.photos, **arguments | {"packed": False})
        return data, data.full_dataset(hparams["classes"]), str(cfg.photos)
    split_file = find_split_file(checkpoint, hparams["split_digest"])
    data = ImageDataModule(settings["root"], split_file=split_file, **arguments)
    return data, data.dataset(cfg.split), str(cfg.split)


def find_split_file(checkpoint: Path, digest: str) -> Path:
    """Return split.csv of the run folder that holds `checkpoint`.

    Args:
        checkpoint: A checkpoint file.
        digest: The SHA-256 of the split that it was trained on.

    Raises:
        ValueError: split.csv is missing or has another digest.
    """
    split_file = run_dir_of(checkpoint) / SPLIT_FILE
    if not split_file.is_file():
        raise ValueError(f"{checkpoint} is not in a run folder (no {split_file}): name the images with photos=FOLDER")
    if split_sha256(load_split(split_file)) != digest:
        raise ValueError(
            f"{split_file} is not the split that {checkpoint} was trained on: name the images with photos=FOLDER"
        )
    return split_file


def extract_features(
    model: ImageClassifier, data: ImageDataModule, dataset: ImageDataset, name: str, config: Mapping[str, Any]
) -> Tensor:
    """Return a model's features (N, F) of images, on the CPU.

    One device computes them, with the backbone frozen as in the head stage. The cache holds only features of a
    backbone that was never trained.

    Args:
        model: Its backbone computes the features. The model stays in evaluation mode.
        data: Loads the images.
        dataset: The images, transformed as for validation.
        name: The name of the images in log lines.
        config: The groups `trainer` and `features`, and `tta`, of a run's configuration.
    """
    trainer = resolve_trainer_config(config["trainer"])
    model.eval().to(resolve_device(trainer["accelerator"]))
    settings = dict(config["features"])
    settings["cache"] = settings["cache"] and state_dict_sha256(model.backbone) == model.hparams["weights_digest"]
    precision = str(trainer["precision"])
    return FeatureExtractor(data, model, precision, **settings, tta=config["tta"]).extract(dataset, name)


@torch.inference_mode()
def predict_features(model: ImageClassifier, features: Tensor, dataset: ImageDataset) -> Predictions:
    """Return the predictions of a model's head for the features (N, F) of the images of `dataset`."""
    logits = model(features.float().to(model.device)).double().cpu()
    return Predictions(dataset.paths, torch.tensor(dataset.labels), logits, model.classes)
