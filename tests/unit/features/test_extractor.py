import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.features.extractor import FeatureExtractor
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.classifier import ImageClassifier


@pytest.fixture
def square(folder: Path) -> Path:
    """Make the images square, so that a random crop of the whole area equals the center crop."""
    from PIL import Image

    for path in folder.glob("*/*.png"):
        Image.open(path).resize((64, 64)).save(path)
    return folder


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the size of each batch that passes through a frozen backbone from now on."""
    passes: list[int] = []
    forward = FrozenBackbone.__call__

    def counted(self: FrozenBackbone, images: Tensor) -> Tensor:
        passes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FrozenBackbone, "__call__", counted)
    return passes


def features_of(root: Path, seed: int = 0, view: int | None = None, cache: bool = True, **settings: Any) -> Tensor:
    data = ImageDataModule(root, image_size=32, resize=32, batch_size=4, num_workers=0, seed=seed, **settings)
    torch.manual_seed(0)
    model = ImageClassifier("resnet18", data.classes)
    model.set_stage("head", epochs=1)
    dataset = data.dataset("train", augmented=view is not None)
    return FeatureExtractor(data, model, "32-true", cache).extract(dataset, "train", view)


def test_extract_finds_features_of_other_seeds_and_folds_in_the_cache(square: Path, monkeypatch: pytest.MonkeyPatch):
    features_of(square, folds=3, fold=0)
    features_of(square, folds=3, fold=1)  # both folds together hold all images
    features_of(square, folds=3, fold=0, view=1)
    features_of(square, folds=3, fold=1, view=1)
    passes = count_passes(monkeypatch)
    features_of(square, folds=3, fold=2, seed=5)
    features_of(square, folds=3, fold=2, seed=5, view=1)
    assert passes == []
    features_of(square, folds=3, fold=2, view=2)
    features_of(square, crop_scale=(0.1, 0.2), view=1)
    assert len(passes) > 1


def test_extract_returns_the_same_features_from_the_cache(square: Path):
    computed = features_of(square, cache=False)
    for _ in range(2):
        assert torch.equal(features_of(square), computed)


def test_extract_divides_the_images_among_the_processes(square: Path, monkeypatch: pytest.MonkeyPatch):
    expected, passes = features_of(square, cache=False), count_passes(monkeypatch)
    monkeypatch.setattr("flowers.features.extractor.broadcast_object", lambda value: value)
    monkeypatch.setattr("flowers.features.extractor.all_gather_object", lambda value: [value])
    parts = []
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        parts.append(features_of(square, cache=False))
    assert torch.equal(torch.cat(parts), expected)
    assert sum(passes) == 3 * math.ceil(len(expected) / 3)
