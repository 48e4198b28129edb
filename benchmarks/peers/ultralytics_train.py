"""The classification trainer of ultralytics on a backbone of torchvision: its default settings, and its own head."""

import json
import os
from pathlib import Path

os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_OFFLINE"] = "true"

import torch
import ultralytics
from PIL import Image
from torchvision import models
from ultralytics.data.augment import classify_transforms
from ultralytics.models.yolo.classify import ClassificationTrainer

from benchmarks.peers.job import Job, read_job, write_result


def main() -> None:
    """Train, and write the logits of the best epoch."""
    job = read_job()
    photos = Path(job.folder, "photos")
    link_images(job, photos)
    settings = {
        "model": str(write_network(job)),
        "data": str(photos),
        "epochs": job.epochs,
        "imgsz": job.image_size,
        "seed": job.seed,
        "device": "cpu" if not torch.cuda.is_available() else 0,
        "project": str(Path(job.folder, "runs")),
        "plots": False,
    }
    trainer = ClassificationTrainer(overrides=settings)
    trainer.train()
    model = torch.load(trainer.best, map_location="cpu", weights_only=False)  # written by this process
    network = (model["ema"] or model["model"]).float().eval()
    transform = classify_transforms(job.image_size)
    logits = {}
    with torch.inference_mode():
        for split in ("val", "test"):
            outputs = []
            for path, _ in job.images[split]:
                output = network(transform(Image.open(path).convert("RGB"))[None])
                outputs.append((output[1] if isinstance(output, tuple) else output)[0].tolist())
            if outputs:
                logits[split] = outputs
    write_result(job, logits, f"ultralytics {ultralytics.__version__}", "ClassificationTrainer, default settings")


def write_network(job: Job) -> Path:
    """Write the network as ultralytics describes one, like its own yolo11-cls-resnet18.yaml."""
    width = models.get_model(job.architecture, weights=None).fc.in_features
    weights = "DEFAULT" if job.weights else None
    backbone = [[-1, 1, "TorchVision", [width, job.architecture, weights, True, 2]]]
    network = {"nc": len(job.classes), "backbone": backbone, "head": [[-1, 1, "Classify", ["nc"]]]}
    path = Path(job.folder, "network-cls.yaml")
    path.write_text(json.dumps(network), encoding="utf-8")
    return path


def link_images(job: Job, folder: Path) -> None:
    """Make the folders that the trainer expects: SPLIT/CLASS/image. Classes are numbered by name, as in the job."""
    for split, rows in job.images.items():
        for index, (path, label) in enumerate(rows):
            link = folder / split / f"{label:04d}" / f"{index}{Path(path).suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


if __name__ == "__main__":
    main()
