"""Score a trained run on its own split or on other images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import image_sha256, read_error_reason
from flowers.data.sources.listing import expand_image_paths
from flowers.evaluation.gallery import save_mistakes, score_images
from flowers.evaluation.metrics import compute_metrics
from flowers.evaluation.rejection_scores import rejection_scores
from flowers.evaluation.report import write_report
from flowers.evaluation.tables import rejection_table, score_tables
from flowers.features.extractor import Extraction, extract_features
from flowers.features.strangeness import fit_strangeness
from flowers.models.network import Network
from flowers.runs.predictions import predict_features
from flowers.runs.rejection import Rejection, rejection_threshold
from flowers.runs.run import Run
from flowers.runtime.files import write_json
from flowers.runtime.text import one_line
from flowers.settings.schema.programs import EvaluateSettings
from flowers.settings.schema.training import Table

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
    folders = {name: getattr(settings, name) for name in ("layout", "merge_similar_names")}
    if not settings.photos and (given := [name for name, value in folders.items() if value is not None]):
        raise ValueError(f"{given[0]} without photos=FOLDER: expected both: a split of the run is read as in training")
    run = Run.open(settings.run, settings.root).replace(
        **{name: getattr(settings, name) for name in ("accelerator", "precision", "tta", "engine", "max_megapixels")}
    )
    model = run.network()
    how = run.extraction(model)  # fails before any image is read
    if settings.photos:
        folders["columns"] = _columns(settings, run)
    data = run.data(settings.photos, corrections=settings.corrections, on_corrupt=settings.on_corrupt, **folders)
    dataset = data.full_dataset(run.hparams.classes) if settings.photos else data.dataset(settings.split)
    name = settings.photos or settings.split
    features = extract_features(model, data, dataset, name, how, run.data)
    predictions = predict_features(model, features, dataset)
    scores = compute_metrics(predictions) | {"engine": how.settings.engine}
    if settings.photos:
        scores["trained_on"] = _count_trained_on(run, dataset.digests)
    rejection = _find_rejection(settings, run, model, how, data, features)
    if rejection is not None:
        strangers = None
        if settings.strangers:
            strangers = rejection.strangeness(_stranger_features(settings.strangers, run, model, how))
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
        config = run.settings.to_dict() | {"engine": how.settings.engine}
        write_report(page, run.folder, config, name, data.source, predictions, scores)
        console.print(f"details: {one_line(page)} and {mistakes.name}", soft_wrap=True)
    return float(scores["accuracy"])


def _columns(settings: EvaluateSettings, run: Run) -> dict[str, Any]:
    """Return the columns of a table of other photos: those of the training, unless others are asked for."""
    data = run.settings.data
    asked = {name: column for name, column in settings.columns.to_dict().items() if column}
    trained = data.columns.to_dict() if isinstance(data, Table) else {}
    return {**trained, **asked, "split": False, "group": False}


def _count_trained_on(run: Run, digests: Sequence[str]) -> int | None:
    """Return how many images are among those that a run was trained on, or in a group with them; None if unknown."""
    if run.stored_split is None:
        return None
    groups = {record.group for record in run.stored_split if record.split == "train"}
    known = {record.sha256 for record in run.stored_split if record.group in groups}
    return sum(digest in known for digest in digests)


def report_page(settings: EvaluateSettings) -> Path | None:
    """Return the page that `run_evaluation` writes; None if it writes none."""
    run = settings.run if settings.run and Path(settings.run).is_dir() and not settings.photos else None
    folder = settings.report or run
    suffix = "" if settings.photos or settings.split == "val" else f"-{settings.split}"
    return Path(folder, f"report{suffix}.html") if folder else None


def _find_rejection(
    settings: EvaluateSettings, run: Run, model: Network, how: Extraction, data: ImageDataModule, features: Tensor
) -> Rejection | None:
    """Return what the run rejects images with; with `reject`, make it and keep it in the run folder."""
    if not settings.reject or settings.photos:
        rejection = run.rejection(settings.reject)
    else:
        if settings.split != "val":
            features = extract_features(model, data, data.dataset("val"), "val", how)
        rejection = fit_rejection(model, data, features, how, settings.reject)
        rejection.save(run.folder)
    if settings.strangers and rejection is None:
        raise ValueError(f"strangers={settings.strangers}: {run.folder} rejects no images: give reject=0.05 with it")
    return rejection


def _stranger_features(folder: str, run: Run, model: Network, how: Extraction) -> Tensor:
    """Return the features of all images below a folder."""
    files = expand_image_paths(folder)
    digests = [_stranger_sha256(file) for file in files]
    data, dataset = run.loose_photos(folder, [str(file.absolute()) for file in files], digests)
    return extract_features(model, data, dataset, "strangers", how, run.data)


def _stranger_sha256(file: Path) -> str:
    try:
        return image_sha256(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"strangers={one_line(file)}: {read_error_reason(error)}: remove it") from error


def fit_rejection(
    model: Network, data: ImageDataModule, val_features: Tensor, how: Extraction, share: float
) -> Rejection:
    """Fit the strangeness to the training images of a run, and its threshold to the validation images.

    The features of training images are in the cache after a head stage without augmentation. After a fine-tune stage
    they cost a pass over at most 2,000 of them.

    Args:
        model: The trained model.
        data: Its images.
        val_features: The features (N, F) of val.
        how: See `extract_features`.
        share: See `Rejection`.

    Raises:
        ValueError: There are too few validation images for the share.
    """
    rejection_threshold(torch.zeros(len(val_features)), share)
    dataset = data.dataset("train")
    if not model.has_untrained_backbone():
        dataset = dataset.sample(_TRAIN_IMAGES)
    features = extract_features(model, data, dataset, "train", how)
    strangeness = fit_strangeness(features, torch.tensor(dataset.labels))
    return Rejection(strangeness, strangeness(val_features), share, how.tta)
