"""The baseline of the benchmark: fine-tuning as a careful PyTorch tutorial writes it."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

from flowers.data.datamodule import ImageDataModule
from flowers.models.network import Network
from flowers.settings.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def training_images(data: ImageDataModule) -> tuple[list[Path], list[int]]:
    """Return the paths and class indices of the training images, in the order of split.csv."""
    rows = [row for row in data.records if row.split == "train"]
    index = {name: number for number, name in enumerate(data.classes)}
    return [Path(str(data.source), row.path) for row in rows], [index[row.label] for row in rows]


def make_batch(dataset: Dataset[tuple[Tensor, int]], indices: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
    """Return `size` images and their labels, taken from `indices` in turn, repeated as often as needed."""
    items = [dataset[index] for index in itertools.islice(itertools.cycle(indices), size)]
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def baseline_transform(settings: Mapping[str, Any]) -> transforms.Compose:
    """Return the augmentation with torchvision's v1 transforms on PIL images.

    Args:
        settings: The group `data` of the configuration.
    """
    jitter = [settings[name] for name in ("brightness", "contrast", "saturation", "hue")]
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(settings["image_size"], settings["crop_scale"], settings["crop_ratio"]),
            transforms.RandomHorizontalFlip(settings["hflip_prob"]),
            transforms.ColorJitter(*jitter),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class BaselineDataset(Dataset[tuple[Tensor, int]]):
    """Reads images as torchvision's ImageFolder does.

    Item i is the normalized image, float32 (3, H, W), and its class index.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], transform: transforms.Compose) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(pil_loader(str(self.paths[index]))), self.labels[index]


class BaselineBenchmark:
    """Does each piece of work as the tutorial does. Each method returns how many images it processed.

    Args:
        data: The training images.
        settings: The group `data` of the configuration.
        model: The benchmark works on a float32 copy in the default memory layout.
        device: Where the copy computes.
        sample: The indices of the images that are decoded and augmented, and that make up the batch.
        loop_indices: The indices of the images in one pass of the training loop.
        batch_size: The size of a training step.
        lr: The learning rate of Adam.
    """

    def __init__(
        self,
        data: ImageDataModule,
        settings: Mapping[str, Any],
        model: Network,
        device: torch.device,
        sample: Sequence[int],
        loop_indices: Sequence[int],
        batch_size: int,
        lr: float,
    ) -> None:
        self.sample, self.device = sample, device
        self.dataset = BaselineDataset(*training_images(data), baseline_transform(settings))
        self.backbone = copy.deepcopy(model.backbone).to(device).to(memory_format=torch.contiguous_format)
        self.head = copy.deepcopy(model.head).to(device)
        self.network = nn.Sequential(self.backbone, self.head)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr)
        self.loader = DataLoader(
            Subset(self.dataset, loop_indices),
            batch_size,
            shuffle=True,
            num_workers=data.num_workers,
            persistent_workers=data.num_workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.batch, self.labels = (part.to(device) for part in make_batch(self.dataset, sample, batch_size))

    @property
    def mean_pixels(self) -> float:
        """The mean number of pixels of an image of the sample."""
        sizes = [pil_loader(str(self.dataset.paths[index])).size for index in self.sample]
        return float(sum(width * height for width, height in sizes) / len(sizes))

    def decoding(self) -> int:
        """Decode the sample."""
        for index in self.sample:
            pil_loader(str(self.dataset.paths[index]))
        return len(self.sample)

    def input_pipeline(self) -> int:
        """Decode and augment the sample."""
        for index in self.sample:
            self.dataset[index]
        return len(self.sample)

    @torch.no_grad()
    def forward_pass(self) -> int:
        """Compute the features of the batch."""
        self.network.eval()
        self.backbone(self.batch)
        return len(self.batch)

    def head_pass(self) -> int:
        """Train the head for an epoch. The frozen backbone runs without gradients."""
        self.network.eval()
        processed = 0
        for images, labels in self.loader:
            with torch.no_grad():
                features = self.backbone(images.to(self.device, non_blocking=True))
            loss = cross_entropy(self.head(features), labels.to(self.device, non_blocking=True))
            self.head_optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.head_optimizer.step()
            processed += len(labels)
        return processed

    def training_step(self) -> int:
        """Train backbone and head on the batch."""
        if not self.network.training:
            self.network.train()
        loss = cross_entropy(self.network(self.batch), self.labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return len(self.batch)
