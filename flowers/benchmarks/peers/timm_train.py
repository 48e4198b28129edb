"""The training loop of timm, with the defaults of its train.py except for a warmup of at most one epoch.

Its default of five epochs is for hundreds of epochs.
"""

import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch.utils.data import DataLoader

from flowers.benchmarks.peers.images import Images, predict, train_epoch
from flowers.benchmarks.peers.job import read_job, write_result

BATCH_SIZE = 128


def main() -> None:
    """Train, and write the logits of the last epoch."""
    job = read_job()
    torch.manual_seed(job.seed)
    model = timm.create_model(job.architecture, pretrained=False, num_classes=len(job.classes))
    if job.weights:
        state = torch.load(job.weights, map_location="cpu", weights_only=True)
        backbone = {name: value for name, value in state.items() if not name.startswith("fc.")}
        assert set(model.load_state_dict(backbone, strict=False).missing_keys) == {"fc.weight", "fc.bias"}
    config = resolve_data_config({"input_size": (3, job.image_size, job.image_size)}, model=model)
    train = Images(job.images["train"], create_transform(**config, is_training=True))
    loader = DataLoader(train, batch_size=BATCH_SIZE, shuffle=True, drop_last=True, num_workers=2)
    # train.py takes 0.1 for 256 images, and scales it with the batch.
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1 * BATCH_SIZE / 256, weight_decay=2e-5, momentum=0.9)
    warmup = min(1, job.epochs - 1)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=job.epochs, warmup_epochs=warmup, warmup_lr=1e-5
    )
    for epoch in range(job.epochs):
        schedule.step(epoch)
        train_epoch(model, loader, optimizer)
    transform = create_transform(**config, is_training=False)
    logits = {}
    for split in ("val", "test"):
        if job.images[split]:
            logits[split] = predict(model, Images(job.images[split], transform))
    recipe = f"SGD {0.1 * BATCH_SIZE / 256:g}, momentum 0.9, batches of {BATCH_SIZE}, cosine, {warmup} epoch of warmup"
    write_result(job, logits, f"timm {timm.__version__}", recipe)


if __name__ == "__main__":
    main()
