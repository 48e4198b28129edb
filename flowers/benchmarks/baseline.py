"""Fine-tuning as a careful tutorial writes it: the baseline of the benchmark."""

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
from flowers.models.classifier import IMAGENET_MEAN, IMAGENET_STD, ImageClassifier


class BaselineDataset(Dataset[tuple[Tensor, int]]):
    """Photos as torchvision's ImageFolder reads them: item i is float32 (3, H, W), normalised, and its label."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], transform: transforms.Compose) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(pil_loader(str(self.paths[index]))), self.labels[index]


def training_images(data: ImageDataModule) -> tuple[list[Path], list[int]]:
    """The paths and labels of train, in the order of split.csv."""
    rows = [row for row in data.records if row.split == "train"]
    return [Path(str(data.root), row.path) for row in rows], [data.classes.index(row.label) for row in rows]


def make_batch(photos: Dataset[tuple[Tensor, int]], places: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
    """`size` photos and labels, from those at `places` in turn."""
    items = [photos[place] for place in itertools.islice(itertools.cycle(places), size)]
    return torch.stack([photo for photo, _ in items]), torch.tensor([label for _, label in items])


def baseline_transform(settings: Mapping[str, Any]) -> transforms.Compose:
    """torchvision's first transforms, on PIL images, with the settings of conf/data."""
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


class BaselineBenchmark:
    """Each method does a piece of work the plain way, and says how many photos that was.

    Args:
        data: has the photos to train on.
        settings: of conf/data.
        model: of its backbone a copy in fp32 and torch's own layout is used, on `device`.
        sample: the places of the photos that are decoded, augmented, and taken for a batch of `batch_size`.
        looped: of those that a loop over the photos takes.
        lr: Adam's.
    """

    def __init__(
        self,
        data: ImageDataModule,
        settings: Mapping[str, Any],
        model: ImageClassifier,
        device: torch.device,
        sample: Sequence[int],
        looped: Sequence[int],
        batch_size: int,
        lr: float,
    ) -> None:
        self.sample, self.device = sample, device
        self.photos = BaselineDataset(*training_images(data), baseline_transform(settings))
        self.backbone = copy.deepcopy(model.backbone).to(device).to(memory_format=torch.contiguous_format)
        self.head = copy.deepcopy(model.head).to(device)
        self.network = nn.Sequential(self.backbone, self.head)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr)
        self.loader = DataLoader(
            Subset(self.photos, looped),
            batch_size,
            shuffle=True,
            num_workers=data.num_workers,
            persistent_workers=data.num_workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.batch, self.labels = (part.to(device) for part in make_batch(self.photos, sample, batch_size))

    @property
    def pixels(self) -> float:
        """Of a photo of the sample, on average."""
        sizes = [pil_loader(str(self.photos.paths[place])).size for place in self.sample]
        return float(sum(width * height for width, height in sizes) / len(sizes))

    def decoding(self) -> int:
        """Reads the sample."""
        for place in self.sample:
            pil_loader(str(self.photos.paths[place]))
        return len(self.sample)

    def pipeline(self) -> int:
        """Reads and augments the sample."""
        for place in self.sample:
            self.photos[place]
        return len(self.sample)

    @torch.no_grad()
    def forward(self) -> int:
        """The batch's features."""
        self.network.eval()
        self.backbone(self.batch)
        return len(self.batch)

    def head_pass(self) -> int:
        """An epoch of the head's training, the backbone frozen but run: its gradients are not needed."""
        self.network.eval()
        done = 0
        for photos, labels in self.loader:
            with torch.no_grad():
                features = self.backbone(photos.to(self.device, non_blocking=True))
            loss = cross_entropy(self.head(features), labels.to(self.device, non_blocking=True))
            self.head_optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.head_optimizer.step()
            done += len(labels)
        return done

    def step(self) -> int:
        """A training step of everything on the batch."""
        if not self.network.training:
            self.network.train()
        loss = cross_entropy(self.network(self.batch), self.labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return len(self.batch)
