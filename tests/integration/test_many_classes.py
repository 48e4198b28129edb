import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_five_hundred_classes_train_and_evaluate_in_little_memory(tmp_path: Path):
    """A process of its own: its peak memory is then that of this run."""
    arguments = [str(tmp_path), "500", "4", "32", "data.val_fraction=0.5", "data.num_workers=0", "head.epochs=2"]
    command = [sys.executable, "-m", "tests.many_classes", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    measured = json.loads(process.stdout.splitlines()[-1])
    assert measured["peak_gib"] < 1.6  # more than 2.6 with the confusion matrix of torchmetrics
    assert measured["report_bytes"] < 2e6
    assert measured["json_bytes"] < 1e6
    assert len(process.stdout.splitlines()) < 150
