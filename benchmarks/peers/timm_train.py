"""The training loop of timm, with the defaults of its train.py except for a warmup of at most one epoch.

Its default of five epochs is for hundreds of epochs. Like train.py, it smooths the labels, draws the interpolation at
random, and keeps the epoch with the best validation accuracy.
"""

import copy

import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch.utils.data import DataLoader

from benchmarks.peers.images import Images, predict, train_epoch
from benchmarks.peers.job import read_job, write_result

BATCH_SIZE = 128


def main() -> None:
    """Train, and write the logits of the best epoch."""
    job = read_job()
    torch.manual_seed(job.seed)
    model = timm.create_model(job.architecture, pretrained=False, num_classes=len(job.classes))
    if job.weights:
        state = torch.load(job.weights, map_location="cpu", weights_only=True)
        backbone = {name: value for name, value in state.items() if not name.startswith("fc.")}
        assert set(model.load_state_dict(backbone, strict=False).missing_keys) == {"fc.weight", "fc.bias"}
    config = resolve_data_config({"input_size": (3, job.image_size, job.image_size)}, model=model)
    train = Images(job.images["train"], create_transform(**config | {"interpolation": "random"}, is_training=True))
    size = min(BATCH_SIZE, len(train))  # train.py drops the last batch: of fewer images than one batch, all of them
    loader = DataLoader(train, batch_size=size, shuffle=True, drop_last=True, num_workers=2)
    rate = 0.1 * size / 256  # train.py takes 0.1 for 256 images, and scales it with the batch
    optimizer = create_optimizer_v2(model, opt="sgd", lr=rate, weight_decay=2e-5, momentum=0.9)
    warmup = min(1, job.epochs - 1)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=job.epochs, warmup_epochs=warmup, warmup_lr=1e-5
    )
    transform = create_transform(**config, is_training=False)
    evaluated = {split: Images(job.images[split], transform) for split in ("val", "test")}
    labels = torch.tensor([label for _, label in job.images["val"]])
    best, best_weights = -1.0, model.state_dict()
    for epoch in range(job.epochs):
        schedule.step(epoch)
        train_epoch(model, loader, optimizer, LabelSmoothingCrossEntropy(smoothing=0.1))
        accuracy = float((predict(model, evaluated["val"]).argmax(1) == labels).float().mean())
        if accuracy > best:
            best, best_weights = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    logits = {split: predict(model, dataset) for split, dataset in evaluated.items() if len(dataset)}
    steps = f"SGD {rate:g}, momentum 0.9, batches of {size}, cosine, {warmup} epoch of warmup"
    recipe = f"{steps}, label smoothing 0.1, best epoch"
    write_result(job, logits, f"timm {timm.__version__}", recipe)


if __name__ == "__main__":
    main()
