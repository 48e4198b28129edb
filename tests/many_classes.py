"""Train, evaluate and report on many classes of made-up photos, and print the peak memory.

By hand; 1,000 classes of 5 photos at 64 pixels took 144 s on two busy cores, at most 1.24 GiB:

    python -m tests.many_classes FOLDER 1000 5 64 model.weights=resnet18.pth
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers.evaluate import main as evaluate
from flowers.train import main as train
from tests.helpers import configuration


def make_photos(root: Path, classes: int, photos: int) -> None:
    """Write small photos of colored blocks; those of one class resemble each other."""
    generator = np.random.default_rng(0)
    for number in range(classes):
        folder = root / f"species {number:04}"
        folder.mkdir(parents=True)
        pattern = generator.integers(0, 200, (6, 6, 3))
        for photo in range(photos):
            blocks = (pattern + generator.integers(0, 56, pattern.shape)).astype(np.uint8)
            Image.fromarray(blocks).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{photo}.png")


def run(folder: Path, classes: int, photos: int, image_size: int, *overrides: str) -> dict[str, float]:
    """Train the head of a ResNet-18, evaluate, write the report, and read the events.

    Returns:
        Seconds, accuracy, peak memory in GiB, and the sizes of the report and of the JSON in bytes.
    """
    make_photos(folder / "photos", classes, photos)
    start, run_dir = time.perf_counter(), folder / "run"
    settings = ["data=folder", f"data.root={folder}/photos", f"data.image_size={image_size}", "model=resnet18"]
    settings += [f"data.resize={image_size}", "model.weights=null", "trainer=cpu", "head.epochs=10"]
    settings += ["finetune.epochs=0", "optimizer.lr=0.01", f"run_dir={run_dir}", *overrides]
    train(configuration(*settings))
    accuracy = evaluate(configuration(f"run={run_dir}", f"output={folder}/scores.json", name="evaluate"))
    tags = EventAccumulator(str(run_dir / "tensorboard")).Reload().Tags()
    assert "val/confusion" in tags["images"]
    return {
        "seconds": time.perf_counter() - start,
        "accuracy": float(accuracy),
        "peak_gib": peak_gib(),
        "report_bytes": (run_dir / "report.html").stat().st_size,
        "json_bytes": (folder / "scores.json").stat().st_size,
    }


def peak_gib() -> float:
    """Return the peak memory of this program in GiB. `ru_maxrss` would include that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    root, class_count, photo_count, side, *more = sys.argv[1:]
    measured = run(Path(root), int(class_count), int(photo_count), int(side), *more)
    sys.stdout.write(json.dumps(measured) + "\n")
