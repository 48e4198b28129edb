"""Features by the backbone as it is before training, for programs that train many linear probes on them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.features.extractor import Extraction, extract_features
from flowers.models.input_settings import resolve_input_settings
from flowers.models.network import Network
from flowers.runtime.seeding import seeded
from flowers.settings.config import build_parts
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.training import Data, Model, Resizing


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


def pretrained_model(data: Data, model: Model, seed: int) -> tuple[ImageDataModule, Network]:
    """Return the images and the model before training that settings name.

    Raises:
        ValueError: A setting is wrong, or the images or the weights cannot be had.
    """
    model, data = resolve_input_settings(model, data)
    images = ImageDataModule.from_settings(**build_parts(data))
    return images, pretrained_network(model, data, images.classes, seed)


def pretrained_network(model: Model, pixels: Resizing, classes: Sequence[str], seed: int) -> Network:
    """Return a network before training, of settings that `resolve_input_settings` returned."""
    with seeded(seed):
        preprocessing = Preprocessing.from_settings(pixels, model)
        return Network(model.architecture, classes, model.weights, model.options, preprocessing)


def extract_split(data: ImageDataModule, model: Network, split: str, how: Extraction) -> LabeledFeatures:
    """Return the features of the images of a split."""
    dataset = data.dataset(split)
    features = extract_features(model, data, dataset, split, how).float()
    group_of = {record.path: record.group for record in data.records}
    return LabeledFeatures(features, torch.tensor(dataset.labels), [group_of[path] for path in dataset.paths])
