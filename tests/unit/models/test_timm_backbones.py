import importlib.util
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.backbones import build_backbone, check_backbone, timm_name
from flowers.models.network import Network
from flowers.runs.run import Run
from flowers.settings.preprocessing import Preprocessing
from tests.helpers import configuration

VIT = {"img_size": 64}
NETWORKS: list[tuple[str, dict[str, Any], int]] = [
    ("timm/resnet18", {}, 512),
    ("resnet26d.bt_in1k", {}, 2048),
    ("convnext_atto", {}, 320),
    ("mobilenetv3_small_050", {}, 1024),
    ("vit_tiny_patch16_224.augreg_in21k", VIT, 192),
    ("vit_tiny_r_s16_p8_224", VIT, 192),
    ("swin_tiny_patch4_window7_224", VIT | {"window_size": 2}, 768),
    ("vit_small_patch14_dinov2.lvd142m", {"img_size": 56, "depth": 2}, 384),
    ("vit_base_patch16_siglip_224", VIT | {"depth": 2}, 768),
]


def test_torchvision_has_the_names_that_both_libraries_know():
    assert timm_name("resnet50") is None
    assert timm_name("timm/resnet50") == "resnet50"
    assert timm_name("resnet50.a1_in1k") == "resnet50.a1_in1k"
    assert configuration("model=timm").model.architecture == "resnet50.a1_in1k"


@pytest.mark.parametrize(("name", "options", "width"), NETWORKS)
def test_frozen_timm_networks_return_the_features_of_the_model(name: str, options: dict[str, Any], width: int):
    size = options.get("img_size", 64)
    model = Network(name, ["a", "b"], options=options, preprocessing=Preprocessing(size)).eval()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.features(images)
    assert model.head.in_features == width
    assert hasattr(model.backbone, "group_matcher")  # for timm.optim.param_groups_layer_decay
    torch.testing.assert_close(FrozenBackbone(model, "32-true")(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["timm/resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_build_backbone_loads_a_file_of_timm_with_its_classifier(tmp_path: Path, name: str, suffix: str):
    donor = timm.create_model(name.removeprefix("timm/"), num_classes=7).eval()
    path = tmp_path / f"donor.{suffix}"
    save_file(donor.state_dict(), path) if suffix == "safetensors" else torch.save(donor.state_dict(), path)
    check_backbone(name, path, {})
    network, _ = build_backbone(name, path, {})
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        expected = donor.forward_head(donor.forward_features(images), pre_logits=True)  # type: ignore[operator]
        torch.testing.assert_close(network.eval()(images), expected, rtol=0, atol=0)


def test_position_embeddings_of_a_file_are_resampled_to_the_image_size(tmp_path: Path):
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    network, _ = build_backbone("vit_tiny_patch16_224", tmp_path / "vit.pth", {"img_size": 64})
    assert network.pos_embed.shape == (1, 17, 192)


def test_build_backbone_rejects_weights_of_another_timm_network(tmp_path: Path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ValueError, match=r"do not fit ConvNeXt .* missing"):
        build_backbone("convnext_atto", tmp_path / "r18.pth", {})


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("convnext_base.fb_in22", None, r"=convnext_base.fb_in22: .* or timm architecture: did you mean convnext_base"),
        ("timm/resnet5O", None, r"did you mean resnet5"),
        ("timm/", None, r"expected the name"),
        ("hf-hub:somebody/something", None, r"expected the name"),
        ("resnet50.a1_in1k", "a2_in1k", r"expected a file or one of the weights .*\(DEFAULT, a1_in1k\)"),
        ("vit_tiny_patch16_224_dummy", None, r"did you mean vit_tiny_patch16_224"),
    ],
)
def test_check_backbone_names_the_nearest_timm_name(architecture: str, weights: str | None, message: str):
    for function in (check_backbone, build_backbone):
        with pytest.raises(ValueError, match=message):
            function(architecture, weights, {})


def test_check_backbone_accepts_published_weights_without_downloading(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "get_session", None)
    for weights in ("DEFAULT", "fb_in22k", None):
        check_backbone("convnext_base.fb_in22k", weights, {})


@pytest.mark.parametrize("options", [{"dropuot": 0.5}, {"pretrained": True}, {"checkpoint_path": "a.pth"}])
def test_check_backbone_names_wrong_options_of_a_timm_network(options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"^model\.options=\{" + next(iter(options))):
        check_backbone("convnext_atto", None, options)


def test_build_backbone_says_what_to_do_if_timm_cannot_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail() -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_session", fail)
    with pytest.raises(ValueError, match=r"^[^\n]*cannot download .*not known.*model.weights=PATH.*null$"):
        build_backbone("convnext_atto.d2_in1k", "DEFAULT", {})


def test_timm_names_need_their_extra_only_if_they_are_used(monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else found(name))
    assert build_backbone("resnet18", None, {})[1] == 512
    for architecture in ("timm/resnet18", "convnext_base.fb_in22k"):
        with pytest.raises(ValueError, match=r"pip install 'timm>="):
            check_backbone(architecture, None, {})


def test_a_checkpoint_restores_a_timm_network(tmp_path: Path):
    model = Network("convnext_atto", ["a", "b"], preprocessing=Preprocessing(interpolation="bicubic")).eval()
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "format_version": 2}
    content |= {"progress": {"epochs_done": 0, "steps": 0}}
    torch.save(content, tmp_path / "a.ckpt")
    restored = Run(tmp_path / "a.ckpt", needs_settings=False).network()
    assert restored.hparams["interpolation"] == "bicubic"
    assert torch.equal(restored.backbone.state_dict()["stem.0.weight"], model.backbone.state_dict()["stem.0.weight"])
