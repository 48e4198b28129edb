from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers.training.trackers.csv import CSVTracker
from flowers.training.trackers.tracker import Picture


def logged(run_dir: Path, steps: int, *rows: tuple[int, dict[str, float]]) -> list[str]:
    """The lines of the file after a session that logs these rows, and continues one that got as far as `steps`."""
    logger = CSVTracker(run_dir, steps)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    logger.finalize("success")
    return (run_dir / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()


def test_csv_tracker_has_the_names_of_tensorboard(tmp_path: Path):
    assert logged(tmp_path, 0, (3, {"val/loss": 0.5, "lr/head": 0.1, "epoch": 0.0})) == [
        "step,train/epoch,train/lr/head,val/loss",
        "3,0.0,0.1,0.5",
    ]


def test_csv_tracker_continues_after_the_last_checkpoint_of_an_earlier_session(tmp_path: Path):
    logged(tmp_path, 0, (0, {"val/loss": 3.0}), (1, {"val/loss": 2.0}), (2, {"val/loss": 1.0}))
    with (tmp_path / "csv" / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("1,0.")  # a killed session's half of a line
    assert logged(tmp_path, 2, (2, {"val/loss": 1.5}), (3, {"val/accuracy": 0.5})) == [
        "step,val/accuracy,val/loss",
        "0,,3.0",
        "1,,2.0",
        "2,,1.5",
        "3,0.5,",
    ]


def test_csv_tracker_starts_again_if_no_checkpoint_was_written(tmp_path: Path):
    logged(tmp_path, 0, (0, {"val/loss": 3.0}))
    assert logged(tmp_path, 0, (0, {"val/accuracy": 0.5})) == ["step,val/accuracy", "0,0.5"]


def test_csv_tracker_writes_images_beside_the_curves(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    CSVTracker(tmp_path, 0).log_image("val/confusion", Picture(np.full((2, 3, 3), (255, 0, 0), np.uint8)), 120)
    with Image.open(tmp_path / "csv/val/confusion-000120.png") as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)
