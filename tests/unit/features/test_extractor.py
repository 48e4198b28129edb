import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.features.datamodule import _UNDISTURBED, FeatureDataModule, FeatureDataset
from flowers.features.extractor import FeatureExtractor
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.classifier import ImageClassifier, Schedule
from flowers.training.lr_schedules import constant, cosine


def fitted(folder: Path, views: int, epochs: int = 3, schedule: Schedule = constant) -> ImageClassifier:
    """A head trained with SGD from one start; without augmentation where `views` is 1."""
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "hflip_prob": 0.0}
    plain = whole | {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    data = ImageDataModule(folder, image_size=32, resize=32, batch_size=4, num_workers=0, **plain)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = ImageClassifier(
        "resnet18", data.classes, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), scheduler=schedule
    )
    model.set_stage("head", epochs)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, FeatureDataModule(data, model, views) if views else data)
    return model


@pytest.fixture
def square(folder: Path) -> Path:
    """Square photos: their random crop of the whole area is the centre crop."""
    from PIL import Image

    for path in folder.glob("*/*.png"):
        Image.open(path).resize((64, 64)).save(path)
    return folder


def test_a_head_trained_on_kept_features_is_the_head_trained_through_the_backbone(square: Path):
    kept, through = fitted(square, views=1), fitted(square, views=0)
    torch.testing.assert_close(kept.head.weight, through.head.weight, rtol=1e-4, atol=1e-5)


def test_steps_by_the_block_are_the_steps_one_by_one(square: Path, monkeypatch: pytest.MonkeyPatch):
    by_the_block = fitted(square, views=1, schedule=cosine)
    monkeypatch.setitem(_UNDISTURBED, "world_size", 2)
    one_by_one = fitted(square, views=1, schedule=cosine)
    assert (by_the_block.step_photos, one_by_one.step_photos) == (4, None)
    assert torch.equal(by_the_block.head.weight, one_by_one.head.weight)
    assert by_the_block.trainer.global_step == one_by_one.trainer.global_step == 3 * 4
    measured, expected = by_the_block.trainer.callback_metrics, one_by_one.trainer.callback_metrics
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value)


def test_the_backbone_is_bit_for_bit_what_it_was_after_either_head_stage(square: Path):
    for views in (0, 1, 2):
        torch.manual_seed(0)
        before = ImageClassifier("resnet18", ["lily", "orchid"]).backbone.state_dict()
        after = fitted(square, views).backbone.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_epoch_takes_one_of_each_photos_views():
    kept = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)  # (V, N, F)
    views = FeatureDataset(kept, [7, 8, 9])
    taken, labels = views.__getitems__([(2, 10), (0, 11)])
    assert torch.equal(taken, torch.stack([kept[0, 2], kept[1, 0]]))
    assert labels.tolist() == [9, 7]


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


def test_views_below_zero_are_refused(folder: Path):
    data = ImageDataModule(folder)
    with pytest.raises(ValueError, match=r"head.cached_views=-1: wanted 0"):
        FeatureDataModule(data, ImageClassifier("resnet18", data.classes), views=-1)
