"""`vision_learner` and `fine_tune` of fastai, with the transforms of its book and its default learning rate.

The predictions are given with its test-time augmentation, and without.
"""

import time

import fastai
import torch
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    ImageBlock,
    IndexSplitter,
    RandomResizedCrop,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from torchvision import models

from benchmarks.peers.job import read_job, write_result


def main() -> None:
    """Train, and write the logits of the last epoch."""
    job = read_job()
    set_seed(job.seed)
    rows = [*job.images["train"], *job.images["val"]]
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=job.classes)),
        get_x=lambda row: row[0],
        get_y=lambda row: job.classes[row[1]],
        splitter=IndexSplitter(range(len(job.images["train"]), len(rows))),
        item_tfms=RandomResizedCrop(job.image_size, min_scale=0.5),
        batch_tfms=aug_transforms(),
    )
    loaders = block.dataloaders(rows)
    architecture = getattr(models, job.architecture)
    learner = vision_learner(loaders, architecture, metrics=accuracy, pretrained=bool(job.weights))
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(job.epochs)
        splits = {split: loaders.test_dl(rows) for split, rows in job.images.items() if rows and split != "train"}
        logits = {name: learner.get_preds(dl=loader)[0].clamp(min=1e-12).log() for name, loader in splits.items()}
        start = time.perf_counter()
        tta_logits = {name: learner.tta(dl=loader)[0].clamp(min=1e-12).log() for name, loader in splits.items()}
    steps = "fine_tune, after an epoch with a frozen body, base_lr 0.002"
    recipe = f"{steps}, RandomResizedCrop(min_scale=0.5), aug_transforms, batches of 64"
    seconds = time.perf_counter() - start
    write_result(job, logits, f"fastai {fastai.__version__}", recipe, tta_logits, seconds)


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    main()
