import sys

import pytest
import torch
from torch import Tensor, nn

from flowers.deploy.gradcam import grad_cam
from flowers.models.classifier import ImageClassifier
from flowers.runtime.config import CONF
from tests.helpers import configuration

SIDE = 64


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def made(name: str) -> ImageClassifier:
    settings = dict(configuration("run_dir=/run", f"model={name}").model) | {"weights": None}
    if name == "vit_b_16":
        settings["options"] = {"image_size": SIDE}
    return ImageClassifier(**settings, classes=["daisy", "rose", "tulip"], image_size=SIDE)


def state(model: nn.Module) -> list[object]:
    modules = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    return [modules, [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]]


@pytest.mark.parametrize("name", sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - {"resnet152"}))
def test_every_architecture_has_a_heat_and_stays_as_it_was(name: str, photo: Tensor):
    model = made(name)
    model.set_stage("head", 1)
    before = state(model)
    likeliest = grad_cam(model, photo)
    assert likeliest.shape == (SIDE, SIDE)
    assert likeliest.dtype == torch.float32
    assert not likeliest.requires_grad
    assert 0 <= likeliest.min() <= likeliest.max() <= 1
    with torch.inference_mode():
        named = grad_cam(model, photo, int(model.eval()(photo[None]).argmax()))
    torch.testing.assert_close(named, likeliest)
    model.set_stage("head", 1)
    assert state(model) == before


class Spots(nn.Module):
    """A backbone whose two features are the means of red and of blue."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.pool, self.flat = nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.map.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[:, :, None, None]

    def forward(self, photos: Tensor) -> Tensor:
        return torch.as_tensor(self.flat(self.pool(self.map(photos))))


def test_the_heat_lies_where_the_class_is():
    model = ImageClassifier("resnet18", ["red", "blue"], mean=(0, 0, 0), std=(1, 1, 1))
    model.backbone, model.head = Spots(), nn.Linear(2, 2)
    model.head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    photo = torch.zeros(3, 8, 10, dtype=torch.uint8)
    photo[0, 1:3, 1:3], photo[2, 5:8, 7:9] = 255, 128
    for label, colour in enumerate((photo[0], photo[2])):
        torch.testing.assert_close(grad_cam(model, photo, label), (colour > 0).float())


def test_a_number_that_no_class_has_is_refused(photo: Tensor):
    with pytest.raises(ValueError, match="label=3: wanted a class's number, 0 to 2"):
        grad_cam(made("resnet18"), photo, 3)


def test_a_photo_that_speaks_for_nothing_is_cold():
    model = made("resnet18")
    nn.init.zeros_(model.head.weight)
    assert grad_cam(model, torch.zeros(3, 32, 32, dtype=torch.uint8)).max() == 0


def test_the_extra_is_named_where_it_lacks(monkeypatch: pytest.MonkeyPatch, photo: Tensor):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ValueError, match=r"pip install 'flowers\[explain\]'"):
        grad_cam(made("resnet18"), photo)
