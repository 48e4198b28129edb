"""The job of a peer, and its result: what the scripts of this folder share. They import nothing else of flowers."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What a peer is to train.

    Args:
        images: For each of train, val and test: the absolute path and the class number of each image.
        classes: The names of the C classes.
        architecture: A name in `torchvision.models`.
        weights: A file of ImageNet weights with the names of torchvision; None for random weights.
        image_size: Side of the images in pixels.
        epochs: Epochs to train.
        seed: Random seed.
        folder: A folder for what the peer writes.
        result: The file of the result.
    """

    images: dict[str, list[tuple[str, int]]]
    classes: list[str]
    architecture: str
    weights: str | None
    image_size: int
    epochs: int
    seed: int
    folder: str
    result: str


def read_job() -> Job:
    """Read the job that the command line names, and put its weights where torchvision would download them to."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if job.weights:
        from torchvision import models

        os.environ["TORCH_HOME"] = f"{job.folder}/torch"
        checkpoints = Path(job.folder, "torch", "hub", "checkpoints")
        checkpoints.mkdir(parents=True, exist_ok=True)
        for entry in models.get_model_weights(job.architecture):
            shutil.copyfile(job.weights, checkpoints / Path(entry.url).name)
    return job


def write_result(
    job: Job,
    logits: dict[str, Any],
    version: str,
    recipe: str,
    tta_logits: dict[str, Any] | None = None,
    tta_seconds: float = 0.0,
) -> None:
    """Write the result.

    Args:
        job: The job.
        logits: Logits (N, C) of val and of test, in the order of the job: tensors or nested lists.
        version: The name and version of the peer.
        recipe: What it did, in one line.
        tta_logits: The same with the test-time augmentation of the peer, if it has one.
        tta_seconds: What these took.
    """
    content = {
        "logits": _as_lists(logits),
        "tta_logits": _as_lists(tta_logits or {}),
        "tta_seconds": tta_seconds,
        "version": version,
        "recipe": recipe,
    }
    Path(job.result).write_text(json.dumps(content), encoding="utf-8")


def _as_lists(logits: dict[str, Any]) -> dict[str, list[list[float]]]:
    return {split: values if isinstance(values, list) else values.tolist() for split, values in logits.items()}
