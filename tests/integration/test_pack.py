import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers.data.datamodule import ImageDataModule
from flowers.evaluate import main as evaluate
from flowers.evaluation.metrics import score
from flowers.features.extractor import UNCACHED, Extraction, extract_features
from flowers.runs.predictions import predict_features
from flowers.runs.run import Run
from flowers.runtime.files import read_json
from flowers.training.experiment import run_training
from tests.helpers import TINY, configuration, packed, program, program_here, weights


def test_pack_killed_at_any_time_and_repeated_writes_the_same_shards(painted: Path, tmp_path: Path):
    complete, output = packed(painted, tmp_path / "complete", "shard_mb=0.01"), tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "flowers.pack",
        f"photos={painted}",
        f"output={output}",
        "shard_mb=0.01",
        "workers=1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while len(list(output.glob("*.tar"))) < 2 and process.poll() is None:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.read()  # ends only after the workers have ended too
    assert not (output / "shards.json").exists()
    written = {path.name: path.read_bytes() for path in output.glob("*.tar")}
    assert 2 <= len(written) < len(complete) - 3  # the workers have not written the rest
    assert all(complete[name] == content for name, content in written.items())
    (output / ".train-000007.tar.1.part").write_bytes(b"half")
    assert packed(painted, output, "shard_mb=0.01") == complete


def test_pack_reports_a_missing_folder_in_one_line(tmp_path: Path):
    done = program_here(f"photos={tmp_path}/none", f"output={tmp_path}/packed", name="pack")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no folder of images" in done.stderr


def test_checkpoint_has_the_same_scores_on_shards_as_on_the_folder(painted: Path, s3: str, tmp_path: Path):
    look: dict[str, Any] = {"image_size": 32, "resize": 32, "batch_size": 16, "num_workers": 0}
    recipe = [*TINY, f"run_dir={tmp_path / 'folder'}", f"data.root={painted}", "data.test_fraction=0.1"]
    run_training(configuration(*recipe, "head.epochs=1", "finetune.epochs=0"))
    model = Run.open(tmp_path / "folder").network()
    folder = ImageDataModule.from_settings(painted, test_fraction=0.1, **look)
    shards = ImageDataModule.from_settings("s3://garden/packed", packed=True, s3_endpoint=s3, retry_timeout=5, **look)
    scores = []
    for data in (folder, shards):
        dataset = data.dataset("val")
        how = Extraction(torch.device("cpu"), "32-true", UNCACHED)
        features = extract_features(model, data, dataset, "val", how)
        scores.append(score(predict_features(model, features, dataset)))
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_training_from_s3_killed_inside_an_epoch_and_resumed_is_the_uninterrupted_run(s3: str, tmp_path: Path):
    recipe = [option for option in TINY if option != "data=folder"]
    recipe += ["model.architecture=mobilenet_v3_small"]  # has dropout
    recipe += ["data=shards", "data.root=s3://garden/packed", f"data.s3_endpoint={s3}", "data.shuffle_shards=2"]
    recipe += ["head.epochs=1", "finetune.epochs=1", "callbacks.mid_epoch.minutes=0.00001"]
    recipe += ["+callbacks.kill._target_=tests.helpers.KillAt"]
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    run_training(configuration(*recipe, f"run_dir={uninterrupted}"))
    assert program(*recipe, f"hydra.run.dir={killed}", KILL_AT="1.2").returncode == -signal.SIGKILL
    other = program(f"resume={killed}", "data.batch_size=8")
    assert other.returncode == 1
    assert "data.batch_size=16" in other.stderr
    assert "data.batch_size=8" in other.stderr
    resumed = program(f"resume={killed}", KILL_AT="1.1")  # the resumed run is already past that batch
    assert resumed.returncode == 0, resumed.stderr
    found, expected = weights(killed), weights(uninterrupted)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert read_json(killed / "result.json")["val"] == read_json(uninterrupted / "result.json")["val"]
    evaluate(configuration(f"run={killed}", name="evaluate"))
    assert "data:image" in (killed / "report.html").read_text(encoding="utf-8")
