"""Features by the backbone as it is before training, for programs that train many linear probes on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.evaluator import extract_features, open_run_images
from flowers.models.backbones import local_weights, state_dict_sha256
from flowers.models.checkpoint_format import read_checkpoint
from flowers.models.input_settings import resolve_input_settings
from flowers.models.network import Network, load_network
from flowers.runs.run_folder import find_checkpoint
from flowers.runtime.hardware import check_devices
from flowers.runtime.seeding import seeded
from flowers.settings.config import build_parts
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.training import Folder, Model, Shards
from flowers.settings.schema.values import DeviceChoice


class LabeledFeatures(NamedTuple):
    """Features and labels of the images of a split.

    Attributes:
        features: (N, F), float32.
        labels: (N,), from 0 to C - 1.
        groups: The group of near duplicates of each image.
    """

    features: Tensor
    labels: Tensor
    groups: list[str]


def device_settings(choice: DeviceChoice, cache_gb: float) -> dict[str, Any]:
    """Return the device and the cache with which a program extracts features, as `extract_features` takes them.

    Raises:
        ValueError: This machine has no such device.
    """
    check_devices(choice.accelerator or "auto")
    trainer = dict.fromkeys(("accelerator", "precision", "deterministic"), "auto") | choice.requested_device()
    return {"trainer": trainer, "features": {"cache": True, "cache_gb": cache_gb}, "tta": "none"}


def pretrained_model(data: Folder | Shards, model: Model, seed: int) -> tuple[ImageDataModule, Network]:
    """Return the images and the model before training that settings name.

    Raises:
        ValueError: A setting is wrong, or the images or the weights cannot be had.
    """
    model, data = resolve_input_settings(model, data)
    images = ImageDataModule.from_settings(**build_parts(data))
    with seeded(seed):
        preprocessing = Preprocessing.from_settings(data, model)
        return images, Network(model.architecture, images.classes, model.weights, model.options, preprocessing)


def pretrained_model_of_run(run: str, root: str | None = None) -> tuple[ImageDataModule, Network]:
    """Return the images of a run, in its split, and its model before training; see `open_run_images` for `root`.

    Raises:
        ValueError: There is no such run, its images have changed, or its first weights cannot be had again.
    """
    checkpoint = find_checkpoint(run)
    hparams = read_checkpoint(checkpoint, is_run=True)["hyper_parameters"]
    return open_run_images(checkpoint, hparams, root), model_before_training(checkpoint, hparams)


def model_before_training(checkpoint: Path, hparams: Mapping[str, Any]) -> Network:
    """Return the model of a run as it was before training: its backbone has not seen the labels.

    The weights that the run started from are read from this machine only. A run folder starts no download.

    Args:
        checkpoint: A checkpoint of the run.
        hparams: The hyperparameters in it.

    Raises:
        ValueError: The weights that the run started from cannot be had again.
    """
    model = load_network(checkpoint)
    if state_dict_sha256(model.backbone) == hparams["weights_digest"]:
        return model  # only its head was trained
    config, weights = hparams["config"], hparams["config"]["model"]["weights"]
    if weights is not None:
        weights = local_weights(hparams["architecture"], weights)
    with seeded(config["seed"]):
        network = hparams["architecture"], hparams["classes"], weights, hparams["options"]
        first = Network(*network, Preprocessing.from_dict(hparams))
    if first.hparams["weights_digest"] != hparams["weights_digest"]:
        raise ValueError(
            f"model.weights={config['model']['weights']}: not the weights that {checkpoint} was trained from: "
            "restore them"
        )
    return first


def extract_split(data: ImageDataModule, model: Network, split: str, settings: Mapping[str, Any]) -> LabeledFeatures:
    """Return the features of the images of a split; `settings` are those of `device_settings`."""
    dataset = data.dataset(split)
    features = extract_features(model, data, dataset, split, settings).float()
    group_of = {record.path: record.group for record in data.records}
    return LabeledFeatures(features, torch.tensor(dataset.labels), [group_of[path] for path in dataset.paths])
