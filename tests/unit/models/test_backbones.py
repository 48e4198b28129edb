import importlib
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from flowers.models.backbones import (
    build_backbone,
    check_backbone,
    check_registered,
    find_weights,
    local_weights,
    registering_package,
)
from flowers.settings.config import CONF
from tests.helpers import configuration, install

MODELS = sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - {"timm"})


@pytest.mark.parametrize("name", MODELS)
def test_build_backbone_returns_the_feature_width_of_each_configured_model(name: str):
    cfg = configuration(f"model={name}").model
    with torch.device("meta"):
        network, width = build_backbone(cfg.architecture, None, cfg.options)
        features = network.eval()(torch.empty(2, 3, 224, 224))
    assert features.shape == (2, width)


@pytest.mark.parametrize("name", MODELS)
def test_each_configured_model_names_published_weights(name: str):
    cfg = configuration(f"model={name}").model
    assert models.get_model_weights(cfg.architecture)[cfg.weights].url.startswith("https://")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_build_backbone_loads_the_weights_of_a_file(tmp_path: Path, suffix: str):
    donor = models.resnet18()
    path = tmp_path / f"donor.{suffix}"
    save_file(donor.state_dict(), path) if suffix == "safetensors" else torch.save(donor.state_dict(), path)
    network, _ = build_backbone("resnet18", path, {})
    donor.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(network.eval()(images), donor.eval()(images))


def test_build_backbone_ignores_the_size_of_the_last_layer_in_a_file(tmp_path: Path):
    torch.save(models.resnet18(num_classes=7).state_dict(), tmp_path / "seven.pth")
    assert build_backbone("resnet18", tmp_path / "seven.pth", {})[1] == 512


def test_build_backbone_ignores_auxiliary_classifiers_in_a_file(tmp_path: Path):
    torch.save(models.googlenet(init_weights=False).state_dict(), tmp_path / "g.pth")
    cfg = configuration("model=googlenet").model
    assert build_backbone("googlenet", tmp_path / "g.pth", cfg.options)[1] == 1024


def test_build_backbone_rejects_weights_of_another_architecture_in_a_short_message(tmp_path: Path):
    torch.save(models.resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ValueError, match=r"do not fit ResNet .* missing .* of another shape \(.*…\)") as error:
        build_backbone("resnet50", tmp_path / "r18.pth", {})
    assert len(str(error.value)) < 600


class RunsCode:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_build_backbone_rejects_a_file_that_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": RunsCode()}, "evil.pth")
    with pytest.raises(ValueError, match="expected a plain state dict"):
        build_backbone("resnet18", "evil.pth", {})
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["garbage.pth", "garbage.safetensors"])
def test_build_backbone_names_a_file_without_weights(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"garbage that is long enough to look like something")
    with pytest.raises(ValueError, match=rf"model.weights=.*{name}"):
        build_backbone("resnet18", tmp_path / name, {})


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("resnet111", None, r"model.architecture=resnet111: .* did you mean resnet101"),
        ("resnet18", "IMAGENET1K_V3", r"model.weights=IMAGENET1K_V3: .* did you mean IMAGENET1K_V1"),
        ("resnet18", "nowhere.pth", r"model.weights=nowhere.pth: expected a file or .*\(IMAGENET1K_V1, DEFAULT\)"),
    ],
)
def test_check_backbone_rejects_unknown_names_with_the_nearest_valid_one(
    architecture: str, weights: str | None, message: str
):
    with pytest.raises(ValueError, match=message):
        check_backbone(architecture, weights, {})
    with pytest.raises(ValueError, match=message):
        build_backbone(architecture, weights, {})


def test_check_backbone_accepts_names_without_downloading(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.hub.urlopen", None)
    for weights in (None, "DEFAULT"):
        check_backbone("resnet152", weights, {})


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_check_backbone_names_a_file_that_holds_no_weights(content: bytes, tmp_path: Path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^model\.weights=.*: (cannot read the file|expected a plain)"):
        check_backbone("resnet18", path, {})


def test_check_backbone_names_options_that_the_architecture_does_not_take():
    with pytest.raises(ValueError, match=r"^model\.options=\{dropuot: 0\.5\}: resnet18 does not take them: .*dropuot"):
        check_backbone("resnet18", None, {"dropuot": 0.5})


def test_build_backbone_rejects_a_network_without_a_linear_layer():
    with pytest.raises(ValueError, match=r"model.architecture=squeezenet1_0: expected a network with a linear layer"):
        build_backbone("squeezenet1_0", None, {})


_TINY = """
from torch import nn



def tiny(width):
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 9))
"""


def test_build_backbone_uses_a_registered_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(
        tmp_path,
        {"backbones": {"tiny": "tiny_networks:tiny", "resnet18": "no.such:thing"}},
        {"tiny_networks.py": _TINY},
    )
    monkeypatch.syspath_prepend(tmp_path)
    donor = importlib.import_module("tiny_networks").tiny(width=4)
    torch.save(donor.state_dict(), tmp_path / "tiny.pth")
    network, width = build_backbone("tiny", tmp_path / "tiny.pth", {"width": 4})
    images = torch.rand(2, 3, 8, 8)
    assert width == 4
    assert torch.equal(network(images), donor[:-1](images))
    with pytest.raises(ValueError, match=r"model.weights=DEFAULT: expected a file .*none are published"):
        check_backbone("tiny", "DEFAULT", {})
    assert (registering_package("tiny"), registering_package("resnet18")) == ("garden", None)
    assert build_backbone("resnet18", None, {})[1] == 512  # torchvision has the name, too


def test_check_registered_imports_nothing_that_a_checkpoint_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "stranger.py").write_text("raise AssertionError('imported')")
    install(tmp_path, {"backbones": {"tiny": "stranger:net"}}, {}, "stranger")  # in the working directory
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name in ("tiny", "stranger", "stranger.net"):
        with pytest.raises(
            ValueError, match=rf"x.ckpt cannot be read: its network {name} is registered by .* stranger"
        ):
            check_registered("x.ckpt", {"architecture": name, "package": "stranger"})
        with pytest.raises(ValueError, match=f"model.architecture={name}: expected the name of a torchvision"):
            build_backbone(name, None, {})
    assert "stranger" not in sys.modules


def test_build_backbone_says_what_to_do_if_a_download_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError, match=r"no network.*put the file into .*checkpoints by hand.*model.weights"):
        build_backbone("resnet18", "DEFAULT", {})


def test_find_weights_returns_the_first_source_that_has_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_build_backbone_refuses_weights_that_are_no_numbers(tmp_path: Path):
    state = build_backbone("shufflenet_v2_x0_5", None, {})[0].state_dict()
    state["conv1.0.weight"][0, 0, 0, 0] = float("inf")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth: conv1.0.weight: some numbers are infinite or missing"):
        build_backbone("shufflenet_v2_x0_5", tmp_path / "weights.pth", {})


def test_local_weights_download_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.hub.urlopen", None)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"get_model\('resnet18', weights='IMAGENET1K_V1'\)\" fetches them"):
        local_weights("resnet18", "IMAGENET1K_V1")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert local_weights("resnet18", "IMAGENET1K_V1") == "IMAGENET1K_V1"
    with pytest.raises(ValueError, match="expected a file or one of the weights"):
        local_weights("resnet18", "http://somewhere/weights.pth")
