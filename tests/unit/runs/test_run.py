import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowers.data.images import MAX_PIXELS
from flowers.models.backbones import state_dict_sha256
from flowers.models.network import predict_logits
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, RESULT_FILE

FIXTURES = Path(__file__).parents[2] / "fixtures"


def with_config(path: Path, **changes: Any) -> Run:
    """Return a run of format 2 whose stored configuration has other groups."""
    checkpoint = torch.load(FIXTURES / "run_format_2" / BEST_CHECKPOINT, weights_only=True)
    config = checkpoint["hyper_parameters"]["config"]
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(config.get(name), dict) else value
    torch.save(checkpoint, path)
    return Run(path)


def test_run_settings_are_those_of_the_training(trained: Path):
    run = Run.open(trained)
    stored = run.content["hyper_parameters"]["config"]
    assert run.settings.to_dict() == stored
    assert [*run.settings.to_dict()["data"]] == [*stored["data"]]
    assert run.settings.optimizer.lr == stored["optimizer"]["lr"]


def test_run_replace_returns_another_run_and_leaves_the_first_one_alone(trained: Path):
    run = Run.open(trained)
    other = run.replace(accelerator="cpu", precision="bf16-mixed", tta="flip", engine="int8")
    assert (other.settings.trainer.precision, other.settings.tta) == ("bf16-mixed", "flip")
    assert other.settings.trainer.strategy == run.settings.trainer.strategy
    assert other.engine_of(run.network()) == "int8"
    assert (run.settings.trainer.precision, run.settings.tta) == ("32-true", "none")


@pytest.mark.parametrize("folder", ["run_format_1", "run_format_2"])
def test_run_of_an_earlier_version_has_the_settings_of_then(folder: str):
    settings = Run.open(FIXTURES / folder).settings
    assert (settings.tta, settings.reject, settings.features.engine) == ("none", None, "pytorch")
    assert settings.data.image_size == 32


def test_run_images_have_the_pixel_limit_of_the_training_or_the_one_asked_for(trained: Path, tmp_path: Path):
    assert Run.open(FIXTURES / "run_format_2").max_pixels == Run.open(trained).max_pixels == MAX_PIXELS
    raised = with_config(tmp_path / "a.ckpt", data={"max_megapixels": 200})
    assert raised.max_pixels == 200_000_000
    assert raised.replace(max_megapixels=0.5).max_pixels == 500_000
    asked = Run.open(trained).replace(max_megapixels=120)
    assert asked.data().source.max_pixels == asked.data(tmp_path).source.max_pixels == 120_000_000


def test_run_reads_settings_whatever_a_stranger_calls_them(tmp_path: Path):
    run = with_config(tmp_path / "a.ckpt", callbacks={"cls": 1, "_fields_set": [2], "mine": {"_target_": "os.getcwd"}})
    assert run.settings.model.architecture == "shufflenet_v2_x0_5"
    assert run.settings.callbacks is not None
    assert run.settings.callbacks.given()["mine"] == {"_target_": "os.getcwd"}


def test_run_network_and_features_give_the_saved_predictions(trained: Path):
    run = Run.open(trained)
    predictions = run.predictions("test")
    assert torch.equal(predict_logits(run.network(), run.features("test")), predictions.logits)
    assert predictions.paths == [record.path for record in run.split if record.split == "test"]


def test_run_network_before_training_is_the_one_it_started_from(trained: Path, tmp_path: Path):
    checkpoint = torch.load(trained / BEST_CHECKPOINT, weights_only=True)
    checkpoint["state_dict"]["backbone.conv1.weight"] += 1  # as training does
    torch.save(checkpoint, tmp_path / "a.ckpt")
    run = Run(tmp_path / "a.ckpt")
    first, last = (state_dict_sha256(run.network(is_trained).backbone) for is_trained in (False, True))
    assert first == run.hparams.weights_digest != last
    checkpoint["hyper_parameters"]["weights_digest"] = "0" * 64
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"model\.weights=None: not the weights that .*b\.ckpt was trained from"):
        Run(tmp_path / "b.ckpt").network(trained=False)


def test_run_result_has_the_scores_and_the_temperature(trained: Path, tmp_path: Path):
    run = Run.open(trained)
    assert run.result is not None
    assert run.result.val.accuracy == run.predictions("val").correct.double().mean()
    assert run.temperature == run.result.temperature
    warm = Run.open(shutil.copytree(trained, tmp_path / "warm"))
    content = json.loads((warm.folder / RESULT_FILE).read_text())
    (warm.folder / RESULT_FILE).write_text(json.dumps(content | {"temperature": 1.5}))
    assert warm.temperature == 1.5
    alone = with_config(tmp_path / "a.ckpt")
    assert (alone.result, alone.temperature, alone.rejection()) == (None, 1, None)


def test_run_split_must_be_that_of_the_checkpoint(trained: Path, tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    run = with_config(tmp_path / "run" / "checkpoints" / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt is not in a run folder \(no .*split\.csv\): name the images"):
        _ = run.split
    lines = (trained / "split.csv").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "split.csv").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"split\.csv is not the split that .*a\.ckpt was trained on"):
        run.replace().data()  # a run reads a file once


def test_run_without_settings_has_a_network_and_no_photos(tmp_path: Path):
    checkpoint = torch.load(FIXTURES / "run_format_2" / BEST_CHECKPOINT, weights_only=True)
    checkpoint["hyper_parameters"]["config"] = None
    torch.save(checkpoint, tmp_path / "a.ckpt")
    run = Run(tmp_path / "a.ckpt", needs_settings=False)
    assert run.network().classes == run.hparams.classes
    assert (run.settings.tta, run.engine_of(run.network())) == ("none", "pytorch")
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged: config\.data is missing"):
        Run.open(tmp_path / "a.ckpt").data()


def test_run_connects_to_no_address_that_only_it_names(tmp_path: Path):
    shards = {"root": "s3://garden/packed", "packed": True, "s3_endpoint": "http://lab:9000"}
    run = with_config(tmp_path / "a.ckpt", data=shards)
    with pytest.raises(
        ValueError, match=r"does not connect: give root=s3://garden/packed to read them there, or root=F"
    ):
        _ = run.photos
    with pytest.raises(ValueError, match="give photos=s3://garden/packed"):
        run.replace(root_key="photos").data()
    same, other = (run.replace(root=root) for root in ("s3://garden/packed", "s3://elsewhere/packed"))
    assert shards.items() <= same.image_settings.items()
    assert {
        "root": "s3://elsewhere/packed",
        "packed": True,
        "s3_endpoint": None,
    }.items() <= other.image_settings.items()
    folder = run.replace(root=str(tmp_path))
    assert folder.image_settings["packed"] is False
    (tmp_path / "shards.json").touch()
    assert folder.image_settings["packed"] is True


@pytest.mark.parametrize("layout", ["classes", "splits", None])
def test_run_layout_of_other_photos_is_that_of_the_run_where_splits_are_classes(layout: str | None, tmp_path: Path):
    for name in ("train", "test"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "photos" / name / "a.png")
    run = with_config(tmp_path / "a.ckpt", data={"layout": layout} if layout else {})
    assert run.image_settings["layout"] == layout
    if layout == "classes":
        assert run.data(tmp_path / "photos").source.classes == ["test", "train"]
    else:
        with pytest.raises(ValueError, match="has the folders test, train: expected train, val"):
            _ = run.data(tmp_path / "photos").source.classes


def test_run_starts_no_more_processes_than_this_machine_bears(tmp_path: Path):
    run = with_config(tmp_path / "a.ckpt", data={"root": "garden", "num_workers": 10**6, "batch_size": 10**9})
    assert run.image_settings["root"] == "garden"
    assert run.image_settings["num_workers"] < 10**4
    assert run.image_settings["batch_size"] == 1024
