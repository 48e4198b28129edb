from pathlib import Path

import torch

from benchmarks.baseline import BaselineDataset, baseline_transform, training_images
from flowers.data.datamodule import ImageDataModule
from tests.helpers import configuration


def test_baseline_dataset_has_the_images_and_labels_of_the_project(painted: Path):
    data = ImageDataModule.from_settings(painted, image_size=32, resize=32)
    augmented = data.train_dataloader().dataset
    overrides = ("data=folder", "data.image_size=32", "data.resize=32", "model=resnet18", "model.weights=null")
    settings = configuration(*overrides, f"data.root={painted}").data.to_dict()
    baseline = BaselineDataset(*training_images(data), baseline_transform(settings))
    assert len(baseline) == len(augmented) == 50  # type: ignore[arg-type]
    assert [baseline[index][1] for index in range(50)] == [int(augmented[index, 0][1]) for index in range(50)]
    image = baseline[0][0]
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    no_jitter = dict.fromkeys(("hflip_prob", "brightness", "contrast", "saturation", "hue"), 0.0)
    full_size = {**settings, **no_jitter, "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]}
    unchanged = BaselineDataset(*training_images(data), baseline_transform(full_size))
    means = torch.stack([unchanged[index][0].mean((1, 2)) for index in range(8)])
    cropped = data.dataset("train")
    project_means = torch.stack([(cropped[index][0] / 255).mean((1, 2)) for index in range(8)])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(means, (project_means - mean) / std, atol=0.03, rtol=0)
