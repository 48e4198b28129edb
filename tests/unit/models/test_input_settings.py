from typing import Any

import pytest

from flowers.models.input_settings import resolve_input_settings
from flowers.settings.preprocessing import IMAGENET_MEAN
from flowers.settings.schema.training import Model, Resizing


def resolve(architecture: str, options: dict[str, Any] | None = None, **data: Any) -> tuple[Any, Any]:
    model = Model(architecture=architecture, weights=None, options=options or {}, mean=None, std=None)
    images = Resizing.model_validate({"image_size": 224, "resize": None, "interpolation": None} | data)
    model, images = resolve_input_settings(model, images)
    return model.to_dict(), images.to_dict()


def test_null_becomes_the_setting_of_imagenet_for_torchvision():
    model, data = resolve("resnet18")
    assert model["mean"] == list(IMAGENET_MEAN)
    assert data == {"image_size": 224, "resize": 256, "interpolation": "bilinear"}


def test_null_becomes_the_setting_of_the_weights_for_timm():
    model, data = resolve("vit_tiny_patch16_224")
    assert model["mean"] == model["std"] == [0.5, 0.5, 0.5]
    assert data == {"image_size": 224, "resize": 248, "interpolation": "bicubic"}


def test_given_settings_stay():
    _, data = resolve("convnext_atto", image_size=64, resize=70, interpolation="bilinear")
    assert data == {"image_size": 64, "resize": 70, "interpolation": "bilinear"}


def test_a_network_of_a_fixed_size_says_how_to_change_it():
    with pytest.raises(ValueError, match=r"518 x 518 pixels: expected data.image_size=518, or .*img_size=224"):
        resolve("vit_small_patch14_dinov2")
    assert resolve("vit_small_patch14_dinov2", {"img_size": 224})[1]["resize"] == 224
    with pytest.raises(ValueError, match=r"takes images of 224 x 224"):
        resolve("vit_small_patch14_dinov2", {"img_size": 224}, image_size=256)
