"""Wrong settings, each as a user gives it: one line at once, and nothing written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.settings import SCHEMAS
from tests.wrong_settings import REQUIRED, WRONG

pytestmark = pytest.mark.faults

NAMES = {
    "train": [
        *(
            "lr=1",
            "head.epoch=3",
            "modle=resnet50",
            "model=resnet51",
            "data=foldr",
            "experiment=reprot",
            "optimizer=adma",
            "logger=tensorbord",
            "logger=[tensorboard,cvs]",
            "logger=null",
            "logger=tensorboard,csv",
        ),
        *(
            "trainer.max_epochs=3",
            "+trainer.foo=1",
            "~head.epochs",
            "~logger.tensorboard.run_dir",
            "data.flip=0.5",
            "head=5",
        ),
        *("data.root=${oc.env:UNSET_VARIABLE}", "data.root=${no.such}", "optimizer.lr", "hydra/launcher=nothing"),
    ],
    "evaluate": ["spilt=val", "checkpoint=x"],
    "predict": ["photo=a.jpg"],
    "sweep": ["sweep.trails=3", "resume=x"],
}
CASES = [(name, each) for lists in (WRONG, NAMES) for name in lists for each in lists[name]]


@pytest.mark.parametrize(("name", "override"), CASES)
def test_wrong_setting_is_answered_in_one_line(name: str, override: str, tmp_path: Path):
    required = [] if name == "train" else REQUIRED.get(name, [])
    command = [sys.executable, "-m", f"{'benchmarks' if name in SCHEMAS else 'flowers'}.{name}", *required, override]
    environment = os.environ | {"FLOWERS_CACHE": str(tmp_path / "cache"), "FLOWERS_DATA": str(tmp_path / "data")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])  # benchmarks is not installed
    start = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
    assert seconds < float(os.environ.get("ANSWER_SECONDS", "5"))
