import csv
import os
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers.data.datamodule import ImageDataModule
from flowers.deploy.classifier import Classifier
from flowers.evaluation.metrics import score
from flowers.features.extractor import UNCACHED, FeatureExtractor
from flowers.models.checkpoint_format import CHECKPOINT_FORMAT, checkpoint_state_key, read_checkpoint
from flowers.runs.predictions import load_predictions, predict_features
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, PREDICTIONS_DIR, SPLIT_FILE
from flowers.runtime.files import read_json
from flowers.training.experiment import run_training
from tests.helpers import SMALL, configuration

FIXTURES = Path(__file__).parents[2] / "fixtures"
FORMAT_1, FORMAT_2 = FIXTURES / "run_format_1", FIXTURES / "run_format_2"  # their images are those of `painted`


def test_format_1_checkpoint_predicts_what_it_predicted_then(painted: Path):
    data = ImageDataModule.from_settings(
        painted, split_file=FORMAT_1 / SPLIT_FILE, image_size=32, resize=32, num_workers=0
    )
    model, dataset = Run(FORMAT_1 / BEST_CHECKPOINT).network(), data.dataset("val")
    features = FeatureExtractor(data, model, "32-true", UNCACHED).extract(dataset, "val")
    found, expected = (
        predict_features(model, features, dataset),
        load_predictions(FORMAT_1 / PREDICTIONS_DIR / "val.csv"),
    )
    assert found.paths == expected.paths
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
    assert score(found)["accuracy"] == read_json(FORMAT_1 / "result.json")["val"]["accuracy"]


def test_format_1_run_folder_classifies_an_image_with_its_temperature(painted: Path):
    classifier = Classifier.load(FORMAT_1, accelerator="cpu", precision="32-true")
    with (FORMAT_1 / PREDICTIONS_DIR / "val.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    logits = torch.tensor([float(row[name]) for name in classifier.classes])
    probabilities = classifier(painted / row["path"]).probabilities
    assert classifier.temperature == read_json(FORMAT_1 / "result.json")["temperature"]
    expected = (logits / classifier.temperature).softmax(0).tolist()
    assert [probabilities[name] for name in classifier.classes] == pytest.approx(expected, abs=1e-4)


def test_format_1_checkpoint_reads_as_the_current_format():
    checkpoint = read_checkpoint(FORMAT_1 / LAST_CHECKPOINT)
    config = checkpoint["hyper_parameters"]["config"]
    assert checkpoint["format_version"] == CHECKPOINT_FORMAT
    assert checkpoint["progress"] == {"epochs_done": 26, "steps": 26 * 6}
    assert (config["head"]["cached_views"], config["data"]["on_corrupt"]) == (1, "error")
    assert set(checkpoint["callbacks"]) == {
        "StageTimer",
        "MidEpochCheckpoint",
        checkpoint_state_key("best", "val/accuracy", "max"),
        checkpoint_state_key("last", None, "min"),
    }


def test_format_1_run_resumes_with_its_best_score(painted: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(FORMAT_1, run)
    recipe = [*SMALL, "model.architecture=shufflenet_v2_x0_5", "data.batch_size=8", "data.crop_scale=[1.0,1.0]"]
    recipe += ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.lr=1e-30"]
    recipe += ["data.test_fraction=0.1", "head.epochs=1", "finetune.epochs=26", "features.cache=false"]
    run_training(configuration(*recipe, f"data.root={painted}", f"run_dir={run}", f"resume={run}"))
    last = read_checkpoint(run / LAST_CHECKPOINT)
    assert last["progress"] == {"epochs_done": 27, "steps": 27 * 6}
    assert last["global_step"] == 27 * 6
    result, before = read_json(run / "result.json"), read_json(FORMAT_1 / "result.json")
    assert result["format_version"] == CHECKPOINT_FORMAT
    assert result["best_epoch"] == before["best_epoch"]
    assert result["val"]["accuracy"] == before["val"]["accuracy"]
    assert result["cost"]["seconds"]["finetune"] > before["cost"]["seconds"]["finetune"]


def test_format_2_run_that_was_stopped_inside_an_epoch_resumes_as_if_it_had_not(painted: Path, tmp_path: Path):
    recipe = [*SMALL, "model.architecture=shufflenet_v2_x0_5", "data.batch_size=8", "data.test_fraction=0.1"]
    recipe += ["optimizer=sgd", "optimizer.lr=0.05", "finetune.backbone_lr=0.05", "finetune.depth=1"]
    recipe += ["head.epochs=1", "features.cache=false", f"data.root={painted}"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    shutil.copytree(FORMAT_2, stopped)
    assert read_checkpoint(stopped / LAST_CHECKPOINT)["progress"] == {"epochs_done": 1, "steps": 6 + 3}
    run_training(configuration(*recipe, f"run_dir={stopped}", f"resume={stopped}"))
    run_training(configuration(*recipe, f"run_dir={whole}"))
    found, expected = (torch.load(run / LAST_CHECKPOINT, weights_only=True) for run in (stopped, whole))
    assert found["format_version"] == CHECKPOINT_FORMAT
    assert found["progress"] == {"epochs_done": 3, "steps": 3 * 6}
    # To the bit on the machine that wrote the fixture; the momentum of SGD is part of the state.
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=0, atol=1e-4)
    for index, state in expected["optimizer_states"][0]["state"].items():
        buffer = found["optimizer_states"][0]["state"][index]["momentum_buffer"]
        torch.testing.assert_close(buffer, state["momentum_buffer"], rtol=0, atol=1e-3)


def test_format_2_run_folder_classifies_an_image(painted: Path):
    prediction = Classifier.load(FORMAT_2, accelerator="cpu", precision="32-true")(next(painted.glob("*/*.*")))
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_format_2_checkpoint_gets_the_hyperparameters_that_are_younger(tmp_path: Path):
    checkpoint = torch.load(FORMAT_2 / BEST_CHECKPOINT, weights_only=True)
    for name in ("options", "interpolation"):
        del checkpoint["hyper_parameters"][name]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert Run(tmp_path / "old.ckpt").network().preprocessing.interpolation == "bilinear"


def write_changed(path: Path, **changes: Any) -> Path:
    checkpoint = torch.load(FORMAT_1 / BEST_CHECKPOINT, weights_only=True)
    for name, value in changes.items():
        checkpoint[name] = checkpoint.get(name, {}) | value if isinstance(value, dict) else value
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyper_parameters": {"_instantiator": "os.getcwd"}}, "names a function to call"),
        ({"module_arguments": {"_instantiator": "os.getcwd"}}, "names a function to call"),
        ({"callbacks": {"any": [{"_instantiator": "os.getcwd"}]}}, "names a function to call"),
        ({"hyper_parameters": {"weights": "DEFAULT"}}, "unknown hyperparameters weights"),
        ({"hyper_parameters": {"architecture": "resnet18"}}, "weights do not fit"),
        ({"format_version": 99}, "format_version is 99, expected at most"),
        ({"hyper_parameters": 3}, "not a checkpoint of flowers"),
        ({"hyper_parameters": {"options": {"weights": "DEFAULT"}}}, "no option weights: expected an option of the net"),
        ({"hyper_parameters": {"image_size": 100_000}}, "image_size=100000: expected a whole number from 1 to 4096"),
        (
            {"hyper_parameters": {"std": [1.0, 1.0, float("nan")]}},
            r"std=\[1.0,1.0,nan\]: expected three finite numbers",
        ),
        (
            {"hyper_parameters": {"classes": ["a"] * 5}},
            r"classes=\[a,a,a,a,a\]: expected at least one and at most 32,7",
        ),
        ({"hyper_parameters": {"architecture": "hf-hub:a/b"}}, "architecture=hf-hub:a/b: expected the name of an arch"),
        ({"hyper_parameters": {"config": {"tta": "flip"}}}, "config.data is missing"),
        ({"state_dict": {"head.bias": torch.zeros(5) / 0}}, "in its weights head.bias are infinite or missing"),
        ({"state_dict": {"head.bias": torch.zeros(1).expand(5)}}, "in its weights head.bias are infinite or missing"),
        ({"state_dict": {"more": torch.zeros(1)}}, r"1 unexpected \(more\)"),
        ({"state_dict": 3}, "not a checkpoint of flowers"),
        ({"progress": 3, "format_version": 2}, "not a checkpoint of flowers"),
        ({"extra": torch.nn.ReLU}, "it names torch.nn.modules.activation ReLU, which no checkpoint of flowers does"),
        ({"extra": bytearray(9)}, "it names __builtin__ bytearray, which no checkpoint of flowers does"),
        ({"loops": 3}, "not a checkpoint of flowers"),
    ],
)
def test_load_network_refuses_a_checkpoint_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        Run(write_changed(tmp_path / "changed.ckpt", **changes)).network()
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("data", {"batch_size": 0}, r"config.data.batch_size=0: expected a whole number, at least 1"),
        ("data", {"root": 3}, r"config.data.root=3: expected a text"),
        ("data", {"retired": 3}, None),  # a key of an earlier version
        ("trainer", {"accelerator": "tpu"}, r"config.trainer.accelerator=tpu: expected one of"),
        ("features", {"cache_gb": float("inf")}, r"config.features.cache_gb=inf: expected a finite number"),
    ],
)
def test_read_checkpoint_checks_the_configuration_as_far_as_it_is_read(
    tmp_path: Path, group: str, change: dict[str, Any], message: str | None
):
    config = torch.load(FORMAT_1 / BEST_CHECKPOINT, weights_only=True)["hyper_parameters"]["config"]
    config |= {group: config[group] | change}
    path = write_changed(tmp_path / "changed.ckpt", hyper_parameters={"config": config})
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        read_checkpoint(path)


def test_read_checkpoint_names_a_missing_and_a_foreign_file(tmp_path: Path):
    (tmp_path / "text.ckpt").write_text("text", encoding="utf-8")
    for name, reason in (("none.ckpt", "No such file"), ("text.ckpt", "not a checkpoint of flowers")):
        with pytest.raises(ValueError, match=f"{name} cannot be read: {reason}"):
            read_checkpoint(tmp_path / name)


def test_resume_checks_the_checkpoint_before_lightning_reads_it(painted: Path, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    write_changed(tmp_path / LAST_CHECKPOINT, hparams={"_instantiator": "os.getcwd"})
    with pytest.raises(ValueError, match="names a function to call"):
        run_training(configuration(*SMALL, f"data.root={painted}", f"run_dir={tmp_path}", f"resume={tmp_path}"))


def test_read_checkpoint_refuses_compressed_files_and_what_is_no_regular_file(tmp_path: Path):
    with (
        zipfile.ZipFile(FORMAT_1 / BEST_CHECKPOINT) as source,
        zipfile.ZipFile(tmp_path / "small.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    os.mkfifo(tmp_path / "fifo.ckpt")
    for name, reason in (("small.ckpt", "it is compressed"), ("fifo.ckpt", "not a regular file")):
        with pytest.raises(ValueError, match=f"{name} cannot be read: {reason}"):
            read_checkpoint(tmp_path / name)
