import importlib.util

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from flowers.deploy.classifier import Classifier
from flowers.deploy.gradcam import grad_cam
from flowers.models.network import Network
from flowers.settings.config import CONF
from flowers.settings.preprocessing import Preprocessing
from tests.helpers import configuration

SIDE = 64


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build_model(name: str) -> Network:
    settings = configuration(f"model={name}").model.to_dict() | {"weights": None}
    if name == "vit_b_16":
        settings["options"] = {"image_size": SIDE}
    return Network(**settings, classes=["daisy", "rose", "tulip"], preprocessing=Preprocessing(SIDE))


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - {"resnet152", "timm"})
)
def test_grad_cam_works_for_every_architecture_and_predicts_what_the_classifier_predicts(name: str, images: Tensor):
    classifier = Classifier(build_model(name))
    probabilities, heat_maps, _ = grad_cam(classifier, images)
    torch.testing.assert_close(probabilities, classifier.probabilities(images), atol=1e-6, rtol=0)
    assert heat_maps.shape == (len(images), SIDE, SIDE)
    assert heat_maps.dtype == torch.float32
    assert not heat_maps.requires_grad
    assert 0 <= heat_maps.min() <= heat_maps.max() <= 1
    with torch.inference_mode():
        of_label = grad_cam(classifier, images[1:2], int(probabilities[1].argmax())).heat_maps
    torch.testing.assert_close(of_label[0], heat_maps[1])


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("timm/resnet18", {}, 2),
        ("convnext_atto", {}, 2),
        ("vit_tiny_patch16_224", {"img_size": SIDE}, 4),
        ("vit_base_patch16_siglip_224", {"img_size": SIDE, "depth": 2}, 4),
        ("swin_tiny_patch4_window7_224", {"img_size": SIDE, "window_size": 2}, 2),
    ],
)
def test_grad_cam_finds_the_last_feature_map_of_timm_networks(
    name: str, options: dict[str, object], grid: int, images: Tensor
):
    model = Network(name, ["daisy", "rose", "tulip"], options=options, preprocessing=Preprocessing(SIDE))
    classifier = Classifier(model)
    probabilities, heat_maps, _ = grad_cam(classifier, images)
    torch.testing.assert_close(probabilities, classifier.probabilities(images), atol=1e-6, rtol=0)
    cells = nn.functional.interpolate(heat_maps[:, None], (grid, grid), mode="nearest-exact")
    smooth = nn.functional.interpolate(cells, (SIDE, SIDE), mode="bilinear")[:, 0]
    assert (smooth - heat_maps).abs().mean() < 0.1  # a map of grid x grid positions


def test_grad_cam_refuses_a_network_whose_layout_it_does_not_know(images: Tensor):
    model = Network("mixer_s32_224", ["daisy", "rose", "tulip"], preprocessing=Preprocessing(224))
    with pytest.raises(ValueError, match="mixer_s32_224: Grad-CAM cannot tell which layer is a feature map"):
        grad_cam(Classifier(model), images[:1].repeat(1, 1, 4, 4)[:, :, :224, :224])


def test_grad_cam_equals_captum_on_the_trained_network(images: Tensor):
    model = build_model("resnet18").eval()
    heat_maps = grad_cam(Classifier(model), images, 2).heat_maps
    expected = LayerGradCam(model, model.backbone.layer4).attribute(images, 2, relu_attributions=True)
    expected = LayerAttribution.interpolate(expected, (SIDE, SIDE), "bilinear")[:, 0].detach()
    torch.testing.assert_close(
        heat_maps, expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-12), atol=1e-4, rtol=0
    )


class RedAndBlue(nn.Module):
    """A backbone with two features: the means of red and of blue."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.pool, self.flat = nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.map.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[:, :, None, None]

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.flat(self.pool(self.map(images))))


def test_grad_cam_is_hot_where_the_class_is():
    model = Network("resnet18", ["red", "blue"], preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)))
    model.backbone, model.head = RedAndBlue(), nn.Linear(2, 2)
    model.head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    image = torch.zeros(3, 8, 10, dtype=torch.uint8)
    image[0, 1:3, 1:3], image[2, 5:8, 7:9] = 255, 128
    for label, color in enumerate((image[0], image[2])):
        torch.testing.assert_close(grad_cam(Classifier(model), image[None], label)[1][0], (color > 0).float())


def test_grad_cam_rejects_a_class_index_out_of_range(images: Tensor):
    with pytest.raises(ValueError, match="label=3: expected a class index from 0 to 2"):
        grad_cam(Classifier(build_model("resnet18")), images, 3)


def test_grad_cam_is_zero_if_nothing_speaks_for_the_class():
    model = build_model("resnet18")
    nn.init.zeros_(model.head.weight)
    assert grad_cam(Classifier(model), torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[1].max() == 0


def test_grad_cam_names_the_extra_if_captum_is_missing(monkeypatch: pytest.MonkeyPatch, images: Tensor):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'captum>="):
        grad_cam(Classifier(build_model("resnet18")), images)
