import importlib.util

import pytest
import torch
from torch import Tensor, nn

from flowers.deploy.gradcam import grad_cam
from flowers.models.classifier import ImageClassifier
from flowers.runtime.config import CONF
from tests.helpers import configuration

SIDE = 64


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build_model(name: str) -> ImageClassifier:
    settings = dict(configuration("run_dir=/run", f"model={name}").model) | {"weights": None}
    if name == "vit_b_16":
        settings["options"] = {"image_size": SIDE}
    return ImageClassifier(**settings, classes=["daisy", "rose", "tulip"], image_size=SIDE)


def model_state(model: nn.Module) -> list[object]:
    modules = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    return [modules, [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]]


@pytest.mark.parametrize("name", sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - {"resnet152"}))
def test_grad_cam_works_for_every_architecture_and_leaves_the_model_unchanged(name: str, pixels: Tensor):
    model = build_model(name)
    model.set_stage("head", 1)
    before = model_state(model)
    heat_map = grad_cam(model, pixels)
    assert heat_map.shape == (SIDE, SIDE)
    assert heat_map.dtype == torch.float32
    assert not heat_map.requires_grad
    assert 0 <= heat_map.min() <= heat_map.max() <= 1
    with torch.inference_mode():
        of_label = grad_cam(model, pixels, int(model.eval()(pixels[None]).argmax()))
    torch.testing.assert_close(of_label, heat_map)
    model.set_stage("head", 1)
    assert model_state(model) == before


class RedAndBlue(nn.Module):
    """A backbone with two features: the means of red and of blue."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.pool, self.flat = nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.map.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[:, :, None, None]

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.flat(self.pool(self.map(images))))


def test_grad_cam_is_hot_where_the_class_is():
    model = ImageClassifier("resnet18", ["red", "blue"], mean=(0, 0, 0), std=(1, 1, 1))
    model.backbone, model.head = RedAndBlue(), nn.Linear(2, 2)
    model.head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    image = torch.zeros(3, 8, 10, dtype=torch.uint8)
    image[0, 1:3, 1:3], image[2, 5:8, 7:9] = 255, 128
    for label, color in enumerate((image[0], image[2])):
        torch.testing.assert_close(grad_cam(model, image, label), (color > 0).float())


def test_grad_cam_rejects_a_class_index_out_of_range(pixels: Tensor):
    with pytest.raises(ValueError, match="label=3: expected a class index from 0 to 2"):
        grad_cam(build_model("resnet18"), pixels, 3)


def test_grad_cam_is_zero_if_nothing_speaks_for_the_class():
    model = build_model("resnet18")
    nn.init.zeros_(model.head.weight)
    assert grad_cam(model, torch.zeros(3, 32, 32, dtype=torch.uint8)).max() == 0


def test_grad_cam_names_the_extra_if_captum_is_missing(monkeypatch: pytest.MonkeyPatch, pixels: Tensor):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'flowers\[explain\]'"):
        grad_cam(build_model("resnet18"), pixels)
