"""How an image is prepared for a network, as one value.

The packages `data` and `models` do not know each other. Both need this value: it is below them, and imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from flowers.settings.schema.training import Model, Resizing
from flowers.settings.schema.values import BitDepth, Interpolation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Size, resizing and normalization of the images that a network sees. Two are equal if all their values are.

    `flowers.data.transforms.eval_transform` makes the transform of the pixels. The network normalizes.

    Attributes:
        image_size: Side of the images in pixels.
        resize: Shorter side in pixels to which an image is resized before the center is cropped; at least `image_size`.
        interpolation: Of that resizing, which is antialiased: "bilinear" or "bicubic".
        mean: Mean of the pixels of each channel. Checkpoints store it as it is given, a list or a tuple.
        std: Standard deviation of the pixels of each channel, likewise.
        bit_depth: Of grayscale photos of more than 8 bits: white is 2 to its power, minus 1. "auto" measures it in each
            photo. None takes 16 if a value is above 255, and else 8, as runs did that have none.
    """

    image_size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    bit_depth: BitDepth | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` returned. Other keys, such as those of hyperparameters, are ignored.

        Earlier versions stored no interpolation and no bit depth: what is missing has its default value.
        """
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})

    @classmethod
    def from_settings(cls, data: Resizing, model: Model | None = None) -> Self:
        """Return that of settings in which no value is null; see `flowers.models.input_settings`."""
        return cls.from_dict(data.given() | ({} if model is None else model.given()))

    @property
    def known_bit_depth(self) -> BitDepth | None:
        """The bit depth if it is a number: of photos that are not a folder of classes, none is measured."""
        return None if self.bit_depth == "auto" else self.bit_depth

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, as plain Python."""
        return asdict(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocessing) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        return self.image_size, self.resize, self.interpolation, tuple(self.mean), tuple(self.std), self.bit_depth
