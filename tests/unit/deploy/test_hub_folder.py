"""Folders for a hub, of untrained networks: torchvision and timm load them, and so does this project."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from flowers.deploy.classifier import Classifier
from flowers.deploy.hub_folder import read_hub_folder, write_hub_folder
from flowers.models.classifier import ImageClassifier
from flowers.runtime.files import read_json, write_json
from tests.helpers import install

CLASSES = ["lily", "orchid", "rose"]
CALIBRATION = {"temperature": 1.5, "tta": "flip", "split_digest": "0ab"}


def written(folder: Path, architecture: str, classes: list[str] = CLASSES, **settings: Any) -> ImageClassifier:
    torch.manual_seed(0)
    model = ImageClassifier(architecture, classes, **{"image_size": 64, "resize": 71} | settings).eval()
    write_hub_folder(folder, model, CALIBRATION, None)
    return model


def images(side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("mobilenet_v3_small", {}),
        ("googlenet", {"options": {"init_weights": False}}),  # with auxiliary classifiers, which are left out
    ],
)
def test_torchvision_loads_the_folder(architecture: str, settings: dict[str, Any], tmp_path: Path):
    model = written(tmp_path, architecture, **settings)
    config = read_json(tmp_path / "config.json")
    network = models.get_model(config["architecture"], num_classes=3, **config["model_args"])
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images()), model(images()), atol=1e-5, rtol=1e-4)
        again, _ = read_hub_folder(tmp_path)
        torch.testing.assert_close(again(images()), model(images()), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("timm/resnet18.a1_in1k", {}),
        ("deit_tiny_distilled_patch16_224", {"options": {"depth": 2}, "image_size": 224, "resize": 250}),
        ("convnext_atto.d2_in1k", {"interpolation": "bicubic", "mean": [0.5] * 3}),
    ],
)
def test_timm_loads_the_folder(architecture: str, settings: dict[str, Any], tmp_path: Path):
    timm = pytest.importorskip("timm")
    model = written(tmp_path, architecture, **settings)
    side = model.hparams["image_size"]
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(network(images(side)), model(images(side)), atol=1e-5, rtol=1e-4)
        again, _ = read_hub_folder(tmp_path)
        torch.testing.assert_close(again(images(side)), model(images(side)), atol=0, rtol=0)
    prepared = timm.data.resolve_model_data_config(network)
    assert list(prepared["input_size"]) == [3, side, side]
    assert list(prepared["mean"]) == list(model.hparams["mean"])
    assert prepared["interpolation"] == model.hparams["interpolation"]
    resize = timm.data.create_transform(**prepared).transforms[0].size
    assert resize in (model.hparams["resize"], (model.hparams["resize"],) * 2)
    assert network.pretrained_cfg["label_names"] == CLASSES


def test_classifier_keeps_odd_class_names_temperature_and_augmentation(tmp_path: Path):
    names = ["=1+1", "$a$ [/b]", "\x1b[31m\r", "caf\udce9"]
    written(tmp_path, "mobilenet_v3_small", names)
    classifier = Classifier.load(tmp_path, "cpu", "32-true")
    assert (classifier.classes, classifier.temperature, classifier.tta) == (names, 1.5, "flip")
    assert Classifier.load(tmp_path, "cpu", tta="none", reject=0).tta == "none"
    with pytest.raises(ValueError, match=r"reject=0.1: .* has no rejection.safetensors: .* and export that run again"):
        Classifier.load(tmp_path, "cpu", reject=0.1)


def test_a_network_of_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path / "site", {"backbones": {"mine": "torchvision.models:mobilenet_v3_small"}}, {})
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ValueError, match="mine is a network of garden: neither torchvision nor timm could load it"):
        written(tmp_path, "mine")


def test_a_network_without_a_bias_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"maxvit_t of torchvision cannot hold the weights of the head: .*bias"):
        written(tmp_path, "maxvit_t", image_size=224, resize=224)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path):
    written(tmp_path, "mobilenet_v3_small")
    config, weights = read_json(tmp_path / "config.json"), (tmp_path / "model.safetensors").read_bytes()
    for change, message in (
        ({"format_version": 9}, "its format_version is 9, expected 1"),
        ({"architecture": "resnet1"}, "cannot be read: model.architecture=resnet1"),
        ({"label_names": ["a"]}, "the weights do not fit mobilenet_v3_small"),
        ({"pixels": {}}, r"config.json is damaged: pixels.image_size is missing"),
        ({"pixels": config["pixels"] | {"mean": "x"}}, r"pixels.mean=x: expected three finite numbers"),
        (
            {"pixels": config["pixels"] | {"std": [1, 0, 1]}},
            r"pixels.std=\[1,0,1\]: expected three finite numbers above 0",
        ),
        (
            {"pixels": config["pixels"] | {"image_size": 10**6}},
            r"pixels.image_size=1000000: expected .* from 1 to 4096",
        ),
        ({"temperature": 0}, r"config.json is damaged: temperature=0: expected a number, above 0"),
        ({"_target_": "os.system"}, r"config.json is damaged: _target_: no such key"),
        ({"classifier": ["features"]}, r"2 missing \(head.weight, head.bias\); 2 unexpected"),
        ({"architecture": "../resnet18"}, r"architecture=../resnet18: expected the name of an architecture"),
        ({"architecture": "hf-hub:a/b", "library": "timm"}, r"architecture=hf-hub:a/b: expected the name"),
        ({"split_digest": {"split": 3}}, r"config.json is damaged: split_digest.*: expected"),
        ({"model_args": 3}, r"model_args=3: expected plain values"),
        ({"model_args": {"weights": "IMAGENET1K_V1"}}, r"no option weights: expected an option of the network"),
        ({"model_args": {"pretrained": True}}, r"no option pretrained"),
        (
            {"model_args": {"width_mult": 10**9}},
            r"model_args={width_mult:1000000000}: expected plain values of at most 65",
        ),
        ({"model_args": {"width_mult": 6e4}}, r"the network is larger than its weights"),
    ):
        write_json(config | change, tmp_path / "config.json")
        with pytest.raises(ValueError, match=message) as caught:
            Classifier.load(tmp_path, "cpu")
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read: it is damaged"):
        Classifier.load(tmp_path, "cpu")
    (tmp_path / "model.safetensors").write_bytes(weights)
    state = load_file(tmp_path / "model.safetensors")
    last, first = "classifier.3.bias", "features.0.0.weight"
    for changed, message in (
        (
            {last: state[last]},
            r"the weights do not fit mobilenet_v3_small: 24\d missing \(backbone.features.0.0.weight, backbone.*, …\)",
        ),
        (
            {key: value for key, value in state.items() if not key.startswith("features.1.")},
            r"16 missing \(.*, .*, .*, …",
        ),
        (
            state | {"more": torch.zeros(1)},
            r"the weights do not fit mobilenet_v3_small: 1 unexpected \(backbone.more\)",
        ),
        (
            state | {first: torch.zeros(1)},
            r"1 of another shape \(backbone.features.0.0.weight \(1,\), expected \(16, 3, 3",
        ),
        (
            state | {first: state[first] * float("nan")},
            r"in its weights backbone.features.0.0.weight are infinite or mis",
        ),
        (
            state | {first: state[first] * 1j},
            r"in its weights backbone.features.0.0.weight are infinite or mis",
        ),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            Classifier.load(tmp_path, "cpu")
        assert "\n" not in str(caught.value)
