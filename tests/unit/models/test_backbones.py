from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from flowers.models.backbones import build_backbone, find_weights
from flowers.runtime.config import CONF
from tests.helpers import configuration

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", MODELS)
def test_each_configured_model_gives_features_of_its_last_layers_width(name: str):
    cfg = configuration(f"model={name}").model
    with torch.device("meta"):
        network, width = build_backbone(cfg.architecture, None, cfg.options)
        features = network.eval()(torch.empty(2, 3, 224, 224))
    assert features.shape == (2, width)


@pytest.mark.parametrize("name", MODELS)
def test_each_configured_model_names_weights_that_torchvision_has(name: str):
    cfg = configuration(f"model={name}").model
    assert models.get_model_weights(cfg.architecture)[cfg.weights].url.startswith("https://")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_from_a_file_are_those_of_the_file(tmp_path: Path, ending: str):
    donor = models.resnet18()
    path = tmp_path / f"donor.{ending}"
    save_file(donor.state_dict(), path) if ending == "safetensors" else torch.save(donor.state_dict(), path)
    network, _ = build_backbone("resnet18", path, {})
    donor.fc = nn.Identity()
    photos = torch.rand(2, 3, 64, 64)
    assert torch.equal(network.eval()(photos), donor.eval()(photos))


def test_the_last_layer_of_the_file_may_be_of_any_size(tmp_path: Path):
    torch.save(models.resnet18(num_classes=7).state_dict(), tmp_path / "seven.pth")
    assert build_backbone("resnet18", tmp_path / "seven.pth", {})[1] == 512


def test_googlenets_auxiliary_classifiers_in_a_file_are_passed_over(tmp_path: Path):
    torch.save(models.googlenet(init_weights=False).state_dict(), tmp_path / "g.pth")
    cfg = configuration("model=googlenet").model
    assert build_backbone("googlenet", tmp_path / "g.pth", cfg.options)[1] == 1024


def test_weights_of_another_architecture_are_refused_in_one_short_message(tmp_path: Path):
    torch.save(models.resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ValueError, match=r"does not fit ResNet .* missing .* of another shape \(.*…\)") as error:
        build_backbone("resnet50", tmp_path / "r18.pth", {})
    assert len(str(error.value)) < 600


class Runs:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Runs()}, "evil.pth")
    with pytest.raises(ValueError, match="not a plain state dict"):
        build_backbone("resnet18", "evil.pth", {})
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["garbage.pth", "garbage.safetensors"])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"garbage that is long enough to look like something")
    with pytest.raises(ValueError, match=rf"model.weights=.*{name}"):
        build_backbone("resnet18", tmp_path / name, {})


def test_names_that_are_unknown_get_the_nearest(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean resnet101"):
        build_backbone("resnet111", None, {})
    with pytest.raises(ValueError, match="did you mean IMAGENET1K_V1"):
        build_backbone("resnet18", "IMAGENET1K_V3", {})
    with pytest.raises(ValueError, match="no linear layer"):
        build_backbone("squeezenet1_0", None, {})


def test_weights_that_cannot_be_downloaded_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError, match=r"no network.*put it into .*checkpoints by hand.*model.weights"):
        build_backbone("resnet18", "DEFAULT", {})


def test_weights_are_had_from_the_first_source_that_has_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", unreachable)
    (tmp_path / "vgg16_bn-1.pth").touch()
    (tmp_path / "resnet18-2.pth").touch()
    sources = ["IMAGENET1K_V1", str(tmp_path / "nowhere"), str(tmp_path)]
    assert find_weights("resnet18", sources) == str(tmp_path / "resnet18-2.pth")
    assert find_weights("resnet50", sources) is None
    assert find_weights("resnet18", []) is None
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", lambda *_, **__: {})
    assert find_weights("resnet18", sources) == "IMAGENET1K_V1"
