"""The loop of PyTorch's transfer learning tutorial, which fine-tunes a network of torchvision.

The reference script of torchvision trains from scratch: its learning rate of 0.1 would destroy pretrained weights.
"""

import copy

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms

from benchmarks.peers.images import Images, predict, train_epoch
from benchmarks.peers.job import read_job, write_result

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    """Train, and write the logits of the best epoch."""
    job = read_job()
    torch.manual_seed(job.seed)
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomResizedCrop(job.image_size), transforms.RandomHorizontalFlip()]
    crop = [transforms.Resize(round(job.image_size * 256 / 224)), transforms.CenterCrop(job.image_size)]
    train = Images(job.images["train"], transforms.Compose([*augment, *normalize]))
    evaluated = {split: Images(job.images[split], transforms.Compose([*crop, *normalize])) for split in ("val", "test")}
    is_single = len(train) % 4 == 1  # the last batch: BatchNorm needs two images
    loader = DataLoader(train, batch_size=4, shuffle=True, num_workers=2, drop_last=is_single)
    model = models.get_model(job.architecture, weights="IMAGENET1K_V1" if job.weights else None)
    model.fc = nn.Linear(model.fc.in_features, len(job.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, best_weights = -1.0, model.state_dict()
    labels = torch.tensor([label for _, label in job.images["val"]])
    for _ in range(job.epochs):
        train_epoch(model, loader, optimizer)
        schedule.step()
        accuracy = float((predict(model, evaluated["val"]).argmax(1) == labels).float().mean())
        if accuracy > best:
            best, best_weights = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    logits = {split: predict(model, dataset) for split, dataset in evaluated.items() if len(dataset)}
    write_result(job, logits, f"torchvision {torchvision.__version__}", "SGD 0.001, momentum 0.9, batches of 4, StepLR")


if __name__ == "__main__":
    main()
