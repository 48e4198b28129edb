"""How the images for an architecture are prepared: size, crop, interpolation, mean and standard deviation."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from flowers.models.backbones import timm_name
from flowers.models.timm_backbones import pretrained_settings
from flowers.settings.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from flowers.settings.schema.training import Model, Resizing
from flowers.settings.schema.values import Interpolation


class InputSettings(NamedTuple):
    """The preparation of images that an architecture was pretrained with.

    Attributes:
        image_size: Side of the images in pixels.
        is_fixed: Whether the network takes no other size, unless it is built for one (`model.options.img_size`).
        crop: Share of the shorter side that the center crop keeps, above 0 and at most 1.
        interpolation: "bilinear" or "bicubic".
        mean: Mean of the pixels of each channel.
        std: Standard deviation of the pixels of each channel.
    """

    image_size: int = 224
    is_fixed: bool = False
    crop: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def input_settings(architecture: str) -> InputSettings:
    """Return the settings of an architecture. Those of torchvision are taken as trained with the usual ones."""
    if (name := timm_name(architecture)) is None:
        return InputSettings()
    found = pretrained_settings(name)
    return InputSettings(
        image_size=int(found["input_size"][-1]),
        is_fixed=bool(found["fixed_input_size"]),
        crop=float(found["crop_pct"]),
        interpolation="bilinear" if found["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


D = TypeVar("D", bound=Resizing)


def resolve_input_settings(model: Model, data: D) -> tuple[Model, D]:
    """Return both groups with the values of the model where mean, std, resize or interpolation are null.

    Raises:
        ValueError: The network does not take images of `data.image_size` pixels.
    """
    own = input_settings(model.architecture)
    check_image_size(own, data.image_size, model.architecture, model.options)
    for key in ("mean", "std"):
        if model.given().get(key, 0) is None:
            model = model.replace(**{key: list(getattr(own, key))})
    if data.interpolation is None:
        data = data.replace(interpolation=own.interpolation)
    if data.resize is None:
        data = data.replace(resize=resize_for(own, data.image_size))
    return model, data


def resize_for(own: InputSettings, image_size: int) -> int:
    """Return the shorter side, in pixels, of which the center crop of `image_size` keeps the share `own.crop`."""
    return max(image_size, int(image_size / own.crop + 1e-6))


def check_image_size(own: InputSettings, image_size: int, architecture: str, options: Mapping[str, Any]) -> None:
    """Check that a network takes images of `image_size` pixels.

    Raises:
        ValueError: It takes another size only.
    """
    if not own.is_fixed or options.get("dynamic_img_size"):
        return
    expected = options.get("img_size", own.image_size)
    if expected != image_size:
        raise ValueError(
            f"data.image_size={image_size}: {architecture} takes images of {expected} x {expected} pixels: "
            f"expected data.image_size={expected}, or model.options.img_size={image_size}"
        )
