"""Score a trained run on its own split or on other images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from flowers.data.datamodule import ImageDataModule, inference_data_args, run_images_args
from flowers.data.dataset import ImageDataset
from flowers.data.images import image_sha256, read_error_reason
from flowers.data.sources.listing import expand_image_paths
from flowers.data.splits import load_split, split_sha256
from flowers.evaluation.gallery import save_mistakes, score_images
from flowers.evaluation.metrics import compute_metrics
from flowers.evaluation.predictions import Predictions, predict_logits
from flowers.evaluation.rejection import Rejection, load_rejection, rejection_threshold
from flowers.evaluation.rejection_scores import rejection_scores
from flowers.evaluation.report import write_report
from flowers.evaluation.tables import rejection_table, score_tables
from flowers.features.extractor import FeatureExtractor
from flowers.features.int8_backbone import check_int8, resolve_engine
from flowers.features.strangeness import fit_strangeness
from flowers.models.checkpoint_format import read_checkpoint
from flowers.models.network import Network, load_network
from flowers.runs.run_folder import SPLIT_FILE, find_checkpoint, run_dir_of
from flowers.runtime.files import write_json
from flowers.runtime.hardware import resolve_device, resolve_trainer_config
from flowers.runtime.text import one_line
from flowers.settings.schema.programs import EvaluateSettings

_TRAIN_IMAGES = 2000  # whose features `fit_rejection` computes if the backbone was trained


def run_evaluation(settings: EvaluateSettings) -> float:
    """Score a run on one of its splits, or on the images in `settings.photos`.

    Print tables, and write report.html and mistakes.csv to the run folder or to `settings.report`.

    Returns:
        The accuracy.

    Raises:
        ValueError: There is no such run, split or device, or its images are missing.
    """
    if settings.strangers and not Path(settings.strangers).is_dir():
        raise ValueError(f"strangers={settings.strangers}: no such folder")
    checkpoint = find_checkpoint(settings.run)
    hparams = read_checkpoint(checkpoint, is_run=True)["hyper_parameters"]
    config = hparams["config"] | {"trainer": hparams["config"]["trainer"] | settings.requested_device()}
    config |= {"tta": settings.tta or config["tta"]}
    accelerator = resolve_trainer_config(config["trainer"])["accelerator"]
    resolve_device(accelerator)  # fails before any image is read
    model = load_network(checkpoint)
    config |= {"engine": resolve_engine(model, config, settings.engine)}
    if config["engine"] == "int8":
        check_int8(accelerator)
    data, dataset, name = _open_images(settings, checkpoint, hparams)
    open_run = partial(open_run_images, checkpoint, hparams, root=settings.root)
    features = extract_features(model, data, dataset, name, config, open_run)
    predictions = predict_features(model, features, dataset)
    scores = compute_metrics(predictions) | {"engine": config["engine"]}
    if settings.photos:
        scores["trained_on"] = _count_trained_on(checkpoint, dataset.digests)
    rejection = _find_rejection(settings, checkpoint, model, data, features, config)
    if rejection is not None:
        strangers = None
        if settings.strangers:
            strangers = rejection.strangeness(_stranger_features(settings.strangers, model, config, open_run))
        scores["rejection"] = rejection_scores(rejection, strangers)
    console = Console(highlight=False, markup=False, emoji=False)
    for table in score_tables(name, scores, console.width):
        console.print(table)
    if rejection is not None:
        console.print(rejection_table(scores["rejection"]))
    if trained_on := scores.get("trained_on"):
        console.print(
            f"{trained_on:,} of the {len(dataset):,} photos are among those that the run was trained on: "
            "on new photos, expect a lower accuracy",
            soft_wrap=True,
        )
    if settings.output:
        write_json({name: scores}, settings.output)
    if page := report_page(settings):
        mistakes = page.with_name(page.name.replace("report", "mistakes", 1)).with_suffix(".csv")
        save_mistakes(score_images(predictions), mistakes)
        write_report(page, run_dir_of(checkpoint), config, name, data.source, predictions, scores)
        console.print(f"details: {one_line(page)} and {mistakes.name}", soft_wrap=True)
    return float(scores["accuracy"])


def _count_trained_on(checkpoint: Path, digests: Sequence[str]) -> int | None:
    """Return how many images are among those that a run was trained on, or in a group with them; None if unknown."""
    split_file = run_dir_of(checkpoint) / SPLIT_FILE
    if not split_file.is_file():
        return None
    records = load_split(split_file)
    groups = {record.group for record in records if record.split == "train"}
    known = {record.sha256 for record in records if record.group in groups}
    return sum(digest in known for digest in digests)


def report_page(settings: EvaluateSettings) -> Path | None:
    """Return the page that `run_evaluation` writes; None if it writes none."""
    run = settings.run if settings.run and Path(settings.run).is_dir() and not settings.photos else None
    folder = settings.report or run
    suffix = "" if settings.photos or settings.split == "val" else f"-{settings.split}"
    return Path(folder, f"report{suffix}.html") if folder else None


def _find_rejection(
    settings: EvaluateSettings,
    checkpoint: Path,
    model: Network,
    data: ImageDataModule,
    features: Tensor,
    config: Mapping[str, Any],
) -> Rejection | None:
    """Return what the run rejects images with; with `reject`, make it and keep it in the run folder."""
    run_dir = run_dir_of(checkpoint)
    if not settings.reject or settings.photos:
        rejection = load_rejection(run_dir, settings.reject, model.head.in_features)
    else:
        if settings.split != "val":
            features = extract_features(model, data, data.dataset("val"), "val", config)
        rejection = fit_rejection(model, data, features, config, settings.reject)
        rejection.save(run_dir)
    if settings.strangers and rejection is None:
        raise ValueError(f"strangers={settings.strangers}: {run_dir} rejects no images: give reject=0.05 with it")
    return rejection


def _stranger_features(
    folder: str, model: Network, config: Mapping[str, Any], open_run: Callable[[], ImageDataModule]
) -> Tensor:
    """Return the features of all images below a folder."""
    depth = model.preprocessing.known_bit_depth
    changes = {"packed": False, "bit_depth": depth}
    data = ImageDataModule.from_settings(folder, **inference_data_args(config["data"]) | changes)
    files = expand_image_paths(folder)
    digests = [_stranger_sha256(file) for file in files]
    names = [str(file.absolute()) for file in files]
    dataset = ImageDataset(Path("/"), names, [0] * len(files), digests, data.eval_transform, bit_depth=depth)
    return extract_features(model, data, dataset, "strangers", config, open_run)


def _stranger_sha256(file: Path) -> str:
    try:
        return image_sha256(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"strangers={one_line(file)}: {read_error_reason(error)}: remove it") from error


def _open_images(
    settings: EvaluateSettings, checkpoint: Path, hparams: Mapping[str, Any]
) -> tuple[ImageDataModule, ImageDataset, str]:
    """Return the data module and the dataset to score, and its name for tables."""
    trained = hparams["config"]["data"]
    changes: dict[str, Any] = {"corrections": settings.corrections}
    changes |= {"on_corrupt": settings.on_corrupt} if settings.on_corrupt else {}
    if settings.photos:
        data = ImageDataModule.from_settings(
            settings.photos, **inference_data_args(trained) | changes | {"packed": False}
        )
        return data, data.full_dataset(hparams["classes"]), str(settings.photos)
    data = open_run_images(checkpoint, hparams, settings.root, **changes)
    return data, data.dataset(settings.split), str(settings.split)


def open_run_images(
    checkpoint: Path, hparams: Mapping[str, Any], root: str | None = None, **changes: Any
) -> ImageDataModule:
    """Return the images that a run was trained with, in its split.

    Args:
        checkpoint: A checkpoint of the run.
        hparams: The hyperparameters in it.
        root: Where the images are now; see `run_images_args`.
        changes: Other arguments of `ImageDataModule` than in training.

    Raises:
        ValueError: The split or the images are gone, or the images are at an address and `root` is None.
    """
    arguments = run_images_args(hparams["config"]["data"], root)
    split_file = find_split_file(checkpoint, hparams)
    return ImageDataModule.from_settings(split_file=split_file, **arguments | changes)


def find_split_file(checkpoint: Path, hparams: Mapping[str, Any]) -> Path:
    """Return split.csv of the run folder that holds `checkpoint`.

    Args:
        checkpoint: A checkpoint file.
        hparams: The hyperparameters in it.

    Raises:
        ValueError: split.csv is missing, or is not that of the checkpoint.
    """
    split_file = run_dir_of(checkpoint) / SPLIT_FILE
    if not split_file.is_file():
        raise ValueError(f"{checkpoint} is not in a run folder (no {split_file}): name the images with photos=FOLDER")
    records = load_split(split_file)
    is_same = split_sha256(records) == hparams["split_digest"]
    if not is_same or {record.label for record in records} != {*hparams["classes"]}:
        raise ValueError(
            f"{split_file} is not the split that {checkpoint} was trained on: name the images with photos=FOLDER"
        )
    return split_file


def extract_features(
    model: Network,
    data: ImageDataModule,
    dataset: ImageDataset,
    name: str,
    config: Mapping[str, Any],
    open_run: Callable[[], ImageDataModule] | None = None,
) -> Tensor:
    """Return a model's features (N, F) of images, on the CPU.

    One device computes them, with the backbone frozen as in the head stage. The cache holds only features of a
    backbone that was never trained.

    Args:
        model: Its backbone computes the features. The model stays in evaluation mode.
        data: Loads the images.
        dataset: The images, transformed as for validation.
        name: The name of the images in log lines.
        config: The groups `trainer` and `features`, and `tta`, of a run's configuration; `engine` if it is another one
            than in training.
        open_run: See `FeatureExtractor.open_data`.
    """
    trainer = resolve_trainer_config(config["trainer"])
    model.eval().to(resolve_device(trainer["accelerator"]))
    settings = dict(config["features"])
    settings["cache"] = settings["cache"] and model.has_untrained_backbone()
    settings["engine"] = resolve_engine(model, config, config.get("engine"))
    extractor = FeatureExtractor(
        data,
        model,
        str(trainer["precision"]),
        **settings,
        tta=config["tta"],
        open_data=open_run,
        answers=lambda features: predict_logits(model, features).argmax(1),
    )
    return extractor.extract(dataset, name)


def fit_rejection(
    model: Network, data: ImageDataModule, val_features: Tensor, config: Mapping[str, Any], share: float
) -> Rejection:
    """Fit the strangeness to the training images of a run, and its threshold to the validation images.

    The features of training images are in the cache after a head stage without augmentation. After a fine-tune stage
    they cost a pass over at most 2,000 of them.

    Args:
        model: The trained model.
        data: Its images.
        val_features: The features (N, F) of val.
        config: See `extract_features`.
        share: See `Rejection`.

    Raises:
        ValueError: There are too few validation images for the share.
    """
    rejection_threshold(torch.zeros(len(val_features)), share)
    dataset = data.dataset("train")
    if not model.has_untrained_backbone():
        dataset = _sample(dataset, _TRAIN_IMAGES)
    features = extract_features(model, data, dataset, "train", config)
    strangeness = fit_strangeness(features, torch.tensor(dataset.labels))
    return Rejection(strangeness, strangeness(val_features), share, str(config["tta"]))


def _sample(dataset: ImageDataset, count: int) -> ImageDataset:
    """Return at most `count` images of a dataset, the same ones each time, in its order."""
    indices = sorted(np.random.default_rng(0).permutation(len(dataset))[:count].tolist())
    paths, labels, digests = (
        [each[index] for index in indices] for each in (dataset.paths, dataset.labels, dataset.digests)
    )
    return ImageDataset(dataset.root, paths, labels, digests, dataset.prepare, bit_depth=dataset.bit_depth)


def predict_features(model: Network, features: Tensor, dataset: ImageDataset) -> Predictions:
    """Return the predictions of a model's head for the features (N, F) of the images of `dataset`."""
    return Predictions(dataset.paths, torch.tensor(dataset.labels), predict_logits(model, features), model.classes)
