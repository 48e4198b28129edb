"""A trained run as a function from an image to a prediction."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from flowers.data.images import read_error_reason, read_image, to_upright_rgb
from flowers.data.transforms import eval_transform
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.classifier import ImageClassifier, load_classifier, read_checkpoint
from flowers.runtime.files import read_json
from flowers.runtime.hardware import resolve_device, resolve_trainer_config
from flowers.runtime.run_folder import BEST_CHECKPOINT, RESULT_FILE, require_run_dir


class Prediction(NamedTuple):
    """The likeliest class of a photo, its probability, and those of all classes, the likeliest first."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Classifier:
    """Classifies photos as a trained model does, with calibrated probabilities.

    Args:
        model: trained; its backbone is copied.
        temperature: what its logits are divided by; 1 leaves its probabilities as they are.
        precision: a name of Lightning's, such as "bf16-mixed".
    """

    def __init__(self, model: ImageClassifier, temperature: float = 1.0, precision: str = "32-true") -> None:
        self.model, self.temperature = model.eval(), temperature
        self.classes: list[str] = model.classes
        self.backbone = FrozenBackbone(model, precision)
        self.eval_transform = eval_transform(model.hparams["image_size"], model.hparams["resize"])

    @classmethod
    def load(cls, path: str | Path, accelerator: str | None = None, precision: str | None = None) -> Self:
        """The classifier of a run's folder (its best checkpoint) or of a checkpoint; no code in it is run.

        A checkpoint outside of its run's folder is not calibrated: its temperature is 1.

        Args:
            path: of the folder or the checkpoint.
            accelerator: such as "cpu"; None for the best there is.
            precision: such as "32-true"; None for the best that the accelerator computes natively.

        Raises ValueError where there is neither a run nor a checkpoint.
        """
        file = Path(path) if Path(path).is_file() else require_run_dir(str(path)) / BEST_CHECKPOINT
        read_checkpoint(file)  # says what is wrong with a stranger's file
        settings = {"accelerator": accelerator or "auto", "precision": precision or "auto", "deterministic": "auto"}
        settled = resolve_trainer_config(settings)
        result = file.resolve().parent.parent / RESULT_FILE
        temperature = read_json(result).get("temperature", 1.0) if result.is_file() else 1.0
        model = load_classifier(file).to(resolve_device(settled["accelerator"])).eval()
        return cls(model, temperature, settled["precision"])

    def __call__(self, photo: str | Path | IO[bytes] | Image.Image) -> Prediction:
        """The class of a photo: a file of any format that `photos.read` reads, or a Pillow image.

        Raises ValueError, OSError or whatever Pillow raises for what it cannot read.
        """
        return self.predictions(self.probabilities(self.pixels(photo)[None]))[0]

    def pixels(self, photo: str | Path | IO[bytes] | Image.Image) -> Tensor:
        """The photo as the network takes it: uint8 (3, H, W)."""
        image = to_upright_rgb(photo) if isinstance(photo, Image.Image) else read_image(photo)
        return torch.as_tensor(self.eval_transform(v2.functional.pil_to_tensor(image)))

    def stream(self, files: Sequence[str], num_workers: int = 0) -> Iterator[tuple[str, Prediction | str]]:
        """Each of `files` in their order, with its prediction or why it cannot be read; memory does not grow.

        Args:
            files: any number of paths.
            num_workers: processes that decode; 0 for this one.
        """
        batches = DataLoader(
            _ImageFiles(files, self.pixels),
            self.backbone.batch_size,
            num_workers=num_workers,
            collate_fn=_collate_readable,
        )
        for names, pixels, reasons in batches:
            good = iter(self.predictions(self.probabilities(pixels)) if len(pixels) else [])
            yield from ((name, reason or next(good)) for name, reason in zip(names, reasons, strict=True))

    @torch.inference_mode()
    def probabilities(self, batch: Tensor) -> Tensor:
        """Calibrated probabilities (B, C) in float64, on the CPU, of photos uint8 (B, 3, H, W)."""
        size = self.backbone.batch_size
        logits = torch.cat([self.model(self.backbone(part).float()) for part in torch.split(batch, size)])
        return (logits.double().cpu() / self.temperature).softmax(1)

    def predictions(self, probabilities: Tensor) -> list[Prediction]:
        """Probabilities (B, C) in words."""
        answers = []
        for row in probabilities.tolist():
            ranked = dict(sorted(zip(self.classes, row, strict=True), key=lambda pair: -pair[1]))
            label = next(iter(ranked))
            answers.append(Prediction(label, ranked[label], ranked))
        return answers


class _ImageFiles(Dataset[tuple[str, Tensor | None, str]]):
    """Path, pixels (3, H, W) or None, and why there are none."""

    def __init__(self, files: Sequence[str], pixels: Callable[[str], Tensor]) -> None:
        self.files, self.pixels = files, pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, Tensor | None, str]:
        file = self.files[index]
        try:
            return file, self.pixels(file), ""
        except MemoryError:
            raise
        except Exception as error:  # a stranger's bytes make Pillow raise anything from EOFError to struct.error
            return file, None, read_error_reason(error)


def _collate_readable(items: Sequence[tuple[str, Tensor | None, str]]) -> tuple[list[str], Tensor, list[str]]:
    """Names, the pixels (B, 3, H, W) of those that could be read, and reasons, empty for these."""
    good = [pixels for _, pixels, _ in items if pixels is not None]
    pixels = torch.stack(good) if good else torch.empty(0)
    return [name for name, _, _ in items], pixels, [reason for _, _, reason in items]
