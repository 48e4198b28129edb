from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from PIL import Image

from flowers.data.datamodule import ImageDataModule
from flowers.features.datamodule import FeatureDataset
from flowers.models.network import Network
from flowers.training.callbacks import GlobalStep
from flowers.training.lr_schedules import constant, cosine
from flowers.training.schedule_position import Schedule
from flowers.training.stage_plan import begin_stage
from flowers.training.stages import HeadStage
from flowers.training.task import FineTuning

EPOCHS, BATCH_SIZE = 3, 4
NO_AUGMENTATION: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "hflip_prob": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
}


def train_head(folder: Path, cached_views: int, steps_per_batch: int = 1, schedule: Schedule = constant) -> FineTuning:
    data = ImageDataModule.from_settings(
        folder, image_size=32, resize=32, batch_size=BATCH_SIZE, num_workers=0, **NO_AUGMENTATION
    )
    torch.manual_seed(0)
    network = Network("resnet18", data.classes)
    task = FineTuning(network, lambda groups: torch.optim.SGD(groups, lr=0.1), schedule)
    batches = begin_stage(task, HeadStage(EPOCHS, cached_views), data, steps_per_batch)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GlobalStep()],
    )
    trainer.fit(task, batches)
    return task


@pytest.fixture
def square(folder: Path) -> Path:
    """Square images: the random crop of their whole area is the center crop."""
    for path in folder.glob("*/*.png"):
        Image.open(path).resize((64, 64)).save(path)
    return folder


def test_head_trained_on_cached_features_equals_head_trained_through_the_backbone(square: Path):
    cached, uncached = train_head(square, cached_views=1), train_head(square, cached_views=0)
    torch.testing.assert_close(cached.network.head.weight, uncached.network.head.weight, rtol=1e-4, atol=1e-5)


def test_several_steps_per_batch_equal_one_step_per_batch(square: Path):
    several = train_head(square, cached_views=1, steps_per_batch=64, schedule=cosine)
    single = train_head(square, cached_views=1, schedule=cosine)
    assert torch.equal(several.network.head.weight, single.network.head.weight)
    assert several.progress.steps == single.progress.steps == EPOCHS * 4
    assert several.trainer.global_step == single.trainer.global_step == EPOCHS * 4
    found, expected = several.trainer.callback_metrics, single.trainer.callback_metrics
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("cached_views", [0, 1, 2])
def test_head_stage_leaves_the_backbone_unchanged(square: Path, cached_views: int):
    torch.manual_seed(0)
    before = Network("resnet18", ["lily", "orchid"]).backbone.state_dict()
    after = train_head(square, cached_views).network.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_feature_dataset_takes_one_view_of_each_image():
    features = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)  # (V, N, F)
    dataset = FeatureDataset(features, [7, 8, 9])
    batch, labels = dataset.__getitems__([(2, 10), (0, 11)])
    assert torch.equal(batch, torch.stack([features[0, 2], features[1, 0]]))
    assert labels.tolist() == [9, 7]
