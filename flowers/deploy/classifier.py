"""A trained run as a function from an image to a prediction."""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from flowers.data.images import MAX_PIXELS, named_memory_error, pixels_of, read_error_reason, read_image
from flowers.data.pixels import GrayBits, to_upright_rgb
from flowers.data.transforms import eval_transform
from flowers.deploy.hub_folder import read_hub_folder
from flowers.deploy.model_files import find_classifier, is_hub_folder
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.features.int8_backbone import Int8Backbone, load_int8_backbone
from flowers.models.network import Network, predict_logits
from flowers.runs.rejection import Rejection, load_rejection
from flowers.runs.run import Run
from flowers.runs.run_folder import REJECTION_FILE
from flowers.runtime.hardware import resolve_device_and_precision

log = logging.getLogger(__name__)


ImageInput = str | Path | bytes | IO[bytes] | Image.Image | npt.NDArray[Any]
AnyImage = TypeVar("AnyImage", bound=ImageInput)


class Prediction(NamedTuple):
    """What a classifier predicts for one image.

    Attributes:
        label: The most likely class.
        probability: Its calibrated probability, from 0 to 1.
        probabilities: The probability of every class, the most likely class first. They sum to 1.
        strangeness: How strange the image is for the model. None for a run without `reject`.
        rejected: Whether the image shows none of the classes: it is stranger than the threshold.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    strangeness: float | None = None
    rejected: bool = False


class Classifier:
    """Classifies images with a trained model and returns calibrated probabilities.

    Use `Classifier.load` to make one from a run folder.

    Example:
        ```python
        from flowers import Classifier

        classifier = Classifier.load("outputs/2026-01-31/12-00-00")
        prediction = classifier("rose.jpg")
        print(prediction.label, prediction.probability)
        ```

    Args:
        model: The trained model. The classifier works on a copy of its backbone.
        temperature: The logits are divided by it. 1 leaves the probabilities uncalibrated.
        precision: The precision of the backbone, as Lightning names it: "32-true", "bf16-mixed".
        tta: Test-time augmentation: "none", "flip" or "five_crop".
        rejection: What rejects images of none of the classes. None to reject nothing.
        backbone: Computes the features in place of a copy of the model's backbone.
        max_pixels: Files of images with more pixels are refused.

    Attributes:
        classes: The class names, in the order of the model's outputs.
    """

    def __init__(
        self,
        model: Network,
        temperature: float = 1.0,
        precision: str = "32-true",
        tta: str = "none",
        rejection: Rejection | None = None,
        backbone: FrozenBackbone | Int8Backbone | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.model, self.temperature, self.tta, self.rejection = model.eval(), temperature, tta, rejection
        if rejection is not None and rejection.tta != tta:
            log.warning("tta=%s: the threshold of rejection was set with tta=%s", tta, rejection.tta)
        self.classes: list[str] = model.classes
        self.backbone = backbone or FrozenBackbone(model, precision, tta)
        self.eval_transform, self.max_pixels = eval_transform(model.preprocessing), max_pixels

    @property
    def engine(self) -> str:
        """What computes the features: "pytorch" or "int8"."""
        return "int8" if isinstance(self.backbone, Int8Backbone) else "pytorch"

    @classmethod
    def load(
        cls,
        path: str | Path,
        accelerator: str | None = None,
        precision: str | None = None,
        tta: str | None = None,
        reject: float | None = None,
        engine: str | None = "pytorch",
        root: str | None = None,
        max_megapixels: float | None = None,
    ) -> Self:
        """Load the classifier of a run folder, of a checkpoint, or of a folder that was exported for a hub.

        Loading runs no code that the file contains. The temperature is read from the folder. It is 1 for a checkpoint
        outside a run folder.

        Args:
            path: A run folder, whose best checkpoint is loaded, a checkpoint file, or what `flowers.export
                formats=[hub]` wrote.
            accelerator: "cpu", "gpu", "cuda" or "mps". None chooses the best one of this machine.
            precision: "32-true", "bf16-mixed" and so on. None chooses the fastest one that the accelerator computes
                natively.
            tta: "none", "flip" or "five_crop". None takes that of the training.
            reject: The share of images of the classes that may be rejected as none of them, below 1. None takes that of
                the run, if it has one. 0 rejects nothing.
            engine: "pytorch", or "int8" to compute features in 8 bits on a CPU; see `load_int8_backbone`. Its answers
                are first compared with those of PyTorch on validation images. None takes that of the training.
            root: Where the photos of the run are now, a folder or an address. Only `engine="int8"` reads them. None
                takes the folder of the training.
            max_megapixels: Files of images with more megapixels are refused. None takes that of the training.

        Returns:
            The classifier, ready to be called.

        Raises:
            ValueError: `path` is none of these, the accelerator is not available, the run lacks what `reject` needs, or
                `engine` cannot be used.
        """
        device, precision = resolve_device_and_precision(accelerator, precision)
        found = find_classifier(path)
        if is_hub_folder(found):
            if engine == "int8":
                raise ValueError(f"engine=int8: {found} has no photos to compare answers on: give a run folder")
            model, config = read_hub_folder(found)
            if reject and not (found / REJECTION_FILE).is_file():
                advice = f"python -m flowers.evaluate run=FOLDER reject={reject:g}, and export that run again"
                raise ValueError(f"reject={reject:g}: {found} has no {REJECTION_FILE}: {advice}")
            rejection = load_rejection(found, reject, model.head.in_features)
            how = config["temperature"], precision, tta or config["tta"], rejection, None, pixels_of(max_megapixels)
            return cls(model.to(device), *how)
        run = Run(found, root, tta=tta, engine=engine, max_megapixels=max_megapixels, needs_settings=False)
        temperature, tta = run.temperature, run.settings.tta
        model = run.network().to(device)
        rejection, backbone = run.rejection(reject), None
        if run.engine_of(model) == "int8":
            backbone = load_int8_backbone(model, precision, tta, run.replace(needs_settings=True).data)
            backbone.check_agreement(partial(_answers, model, rejection))
        return cls(model, temperature, precision, tta, rejection, backbone, run.max_pixels)

    def __call__(self, image: ImageInput) -> Prediction:
        """Classify one image.

        Args:
            image: A path, an open binary file or its bytes, in a format that `flowers.data.images.read_image` reads
                (JPEG, PNG, WebP, BMP, GIF, TIFF); a Pillow image of any mode; or an array of pixels, uint8, (H, W, 3)
                in RGB or (H, W) in gray. Files and Pillow images are turned upright as their EXIF data say. An array
                has none: it is taken as it is.

        Returns:
            The prediction.

        Raises:
            ValueError: The image has too many pixels or bytes, there is not enough memory for it, or an array has
                another shape or type.
            OSError: The file cannot be read. Pillow may raise other exceptions for a damaged file.
        """
        return self.classify(self.pixels(image)[None])[0]

    def pixels(self, image: ImageInput) -> Tensor:
        """Read, resize and crop an image: the input of the network, uint8 (3, H, W)."""
        return self._images([image]).read(0)

    def _images(self, images: Sequence[ImageInput]) -> "_Images":
        return _Images(images, self.eval_transform, self.model.preprocessing.bit_depth, self.max_pixels)

    def stream(self, images: Sequence[AnyImage], num_workers: int = 0) -> Iterator[tuple[AnyImage, Prediction | str]]:
        """Classify any number of images in batches. Memory use does not depend on their number.

        Args:
            images: Paths, or whatever else a call takes.
            num_workers: Worker processes that read images. 0 reads them in this process.

        Yields:
            Each of them in order, with its prediction or the reason why it cannot be read.
        """
        batches = DataLoader(
            self._images(images),
            self.backbone.batch_size,
            num_workers=num_workers,
            collate_fn=_collate_readable,
        )
        left = iter(images)
        for pixels, reasons in batches:
            predictions = iter(self.classify(torch.from_numpy(pixels)) if len(pixels) else [])
            yield from ((next(left), reason or next(predictions)) for reason in reasons)

    def classify(self, batch: Tensor) -> list[Prediction]:
        """Return the predictions of network inputs, uint8 (B, 3, H, W)."""
        features = self.features(batch)
        return self.predictions(self.calibrate(self.logits(features)), self.strangeness(features))

    def probabilities(self, batch: Tensor) -> Tensor:
        """Return calibrated probabilities.

        Args:
            batch: Network inputs, uint8 (B, 3, H, W).

        Returns:
            Float64 (B, C), on the CPU.
        """
        return self.calibrate(self.logits(self.features(batch)))

    def outputs(self, batch: Tensor) -> Tensor:
        """Return the outputs of an exported program for network inputs: probabilities (B, C), with strangeness last."""
        features = self.features(batch)
        probabilities, strangeness = self.calibrate(self.logits(features)), self.strangeness(features)
        return probabilities if strangeness is None else torch.cat([probabilities, strangeness[:, None]], 1)

    def outputs_of_images(self, images: Tensor) -> Tensor:
        """Return the same for decoded images, uint8 (B, 3, H, W)."""
        return self.outputs(torch.as_tensor(self.eval_transform(images)))

    def features(self, batch: Tensor) -> Tensor:
        """Return the features (B, F) of network inputs, uint8 (B, 3, H, W)."""
        return torch.cat([self.backbone(part).float() for part in torch.split(batch, self.backbone.batch_size)])

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) of features (B, F)."""
        return self.model.logits(features)

    def strangeness(self, features: Tensor) -> Tensor | None:
        """Return the strangeness (B,), on the CPU, of features (B, F); None without `rejection`."""
        return None if self.rejection is None else self.rejection.strangeness(features.cpu())

    def calibrate(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities, float64 (B, C) on the CPU, of logits (B, C)."""
        return (logits.double().cpu() / self.temperature).softmax(1)

    def predictions(self, probabilities: Tensor, strangeness: Tensor | None = None) -> list[Prediction]:
        """Convert probabilities (B, C), and strangeness (B,) if there is `rejection`, to B predictions."""
        predictions = []
        threshold = None if self.rejection is None else self.rejection.threshold
        scores = [None] * len(probabilities) if strangeness is None else strangeness.tolist()
        for row, score in zip(probabilities.tolist(), scores, strict=True):
            ranked = dict(sorted(zip(self.classes, row, strict=True), key=lambda pair: -pair[1]))
            label = next(iter(ranked))
            is_stranger = threshold is not None and score is not None and not score <= threshold
            predictions.append(Prediction(label, ranked[label], ranked, score, is_stranger))
        return predictions


def _answers(model: Network, rejection: Rejection | None, features: Tensor) -> Tensor:
    """Return the answers (N,) to features (N, F): class numbers, and -1 for none of the classes."""
    answers = predict_logits(model, features).argmax(1)
    if rejection is not None:
        answers[rejection.strangeness(features) > rejection.threshold] = -1
    return answers


def _from_array(pixels: npt.NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(
            f"an array {pixels.dtype} {pixels.shape}: expected the pixels of one image, uint8, (H, W, 3) in RGB or "
            "(H, W) in gray"
        )
    return Image.fromarray(pixels).convert("RGB")


class _Images(Dataset[tuple[Tensor | None, str]]):
    """Item i is the pixels (3, H, W) of an image, or None, and the reason why there are none.

    It holds the transform and not the classifier: a worker that is started by spawn gets a copy of it.
    """

    def __init__(
        self,
        images: Sequence[ImageInput],
        transform: Callable[[Tensor], Tensor],
        bit_depth: GrayBits,
        max_pixels: int,
    ) -> None:
        self.images, self.transform, self.bit_depth, self.max_pixels = images, transform, bit_depth, max_pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        try:
            return self.read(index), ""
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything from EOFError to struct.error for a damaged file
            return None, read_error_reason(error)

    def read(self, index: int) -> Tensor:
        """Return the pixels (3, H, W) of an image, or raise an error."""
        image = self.images[index]
        with named_memory_error(image if isinstance(image, (str, Path)) else "the image"):
            if isinstance(image, np.ndarray):
                rgb = _from_array(image)
            elif isinstance(image, Image.Image):
                rgb = to_upright_rgb(image, self.bit_depth)
            elif isinstance(image, (str, Path, bytes)) or hasattr(image, "read"):
                file = io.BytesIO(image) if isinstance(image, bytes) else image
                rgb = read_image(file, self.max_pixels, bit_depth=self.bit_depth)
            else:
                kind = type(image).__name__
                raise ValueError(
                    f"a {kind}: expected a path, bytes, an open binary file, a Pillow image or a NumPy array"
                )
            return torch.as_tensor(self.transform(v2.functional.pil_to_tensor(rgb)))


def _collate_readable(items: Sequence[tuple[Tensor | None, str]]) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the pixels (B, 3, H, W) of the B readable images, and all reasons (empty if readable).

    Workers send an array through a pipe. A tensor takes /dev/shm, and where that is full, the program waits for ever.
    """
    readable = [pixels for pixels, _ in items if pixels is not None]
    return torch.stack(readable).numpy() if readable else np.empty(0, np.uint8), [reason for _, reason in items]
