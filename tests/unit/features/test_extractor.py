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
    """Square photos: their random crop of the whole area is the centre crop."""
    from PIL import Image

    for path in folder.glob("*/*.png"):
        Image.open(path).resize((64, 64)).save(path)
    return folder


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of photos in each batch that goes through a backbone from here on."""
    passes: list[int] = []
    through = FrozenBackbone.__call__

    def counted(self: FrozenBackbone, photos: Tensor) -> Tensor:
        passes.append(len(photos))
        return through(self, photos)

    monkeypatch.setattr(FrozenBackbone, "__call__", counted)
    return passes


def features_of(root: Path, seed: int = 0, view: int | None = None, cache: bool = True, **settings: Any) -> Tensor:
    data = ImageDataModule(root, image_size=32, resize=32, batch_size=4, num_workers=0, seed=seed, **settings)
    torch.manual_seed(0)
    model = ImageClassifier("resnet18", data.classes)
    model.set_stage("head", epochs=1)
    dataset = data.dataset("train", augmented=view is not None)
    return FeatureExtractor(data, model, "32-true", cache).extract(dataset, "train", view)


def test_another_seed_and_other_folds_find_what_is_kept(square: Path, monkeypatch: pytest.MonkeyPatch):
    features_of(square, folds=3, fold=0)
    features_of(square, folds=3, fold=1)  # together all photos
    features_of(square, folds=3, fold=0, view=1)
    features_of(square, folds=3, fold=1, view=1)
    passes = count_passes(monkeypatch)
    features_of(square, folds=3, fold=2, seed=5)
    features_of(square, folds=3, fold=2, seed=5, view=1)
    assert passes == []
    features_of(square, folds=3, fold=2, view=2)
    features_of(square, crop_scale=(0.1, 0.2), view=1)
    assert len(passes) > 1


def test_kept_features_are_those_computed(square: Path):
    computed = features_of(square, cache=False)
    for _ in range(2):
        assert torch.equal(features_of(square), computed)


def test_of_several_processes_each_computes_a_stretch(square: Path, monkeypatch: pytest.MonkeyPatch):
    wanted, passes = features_of(square, cache=False), count_passes(monkeypatch)
    monkeypatch.setattr("flowers.features.extractor.broadcast_object", lambda value: value)
    monkeypatch.setattr("flowers.features.extractor.all_gather_object", lambda value: [value])
    parts = []
    for number in range(3):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
        monkeypatch.setattr("torch.distributed.get_rank", lambda number=number: number)
        parts.append(features_of(square, cache=False))
    assert torch.equal(torch.cat(parts), wanted)
    assert sum(passes) == 3 * math.ceil(len(wanted) / 3)
