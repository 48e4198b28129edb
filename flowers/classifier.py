"""A trained run as a function of a photo."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from flowers import checkpoints, hardware, photos, results, run, transforms
from flowers.frozen import FrozenPass
from flowers.model import FlowerClassifier


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

    def __init__(self, model: FlowerClassifier, temperature: float = 1.0, precision: str = "32-true") -> None:
        self.model, self.temperature = model.eval(), temperature
        self.classes: list[str] = model.classes
        self.backbone = FrozenPass(model, precision)
        self.centre = transforms.centred(model.hparams["image_size"], model.hparams["resize"])

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
        file = Path(path) if Path(path).is_file() else run.existing(str(path)) / checkpoints.BEST
        checkpoints.read(file)  # says what is wrong with a stranger's file
        settings = {"accelerator": accelerator or "auto", "precision": precision or "auto", "deterministic": "auto"}
        settled = hardware.settled(settings)
        result = file.resolve().parent.parent / results.RESULT
        temperature = results.load(result).get("temperature", 1.0) if result.is_file() else 1.0
        model = checkpoints.load(file).to(hardware.device(settled["accelerator"])).eval()
        return cls(model, temperature, settled["precision"])

    def __call__(self, photo: str | Path | IO[bytes] | Image.Image) -> Prediction:
        """The class of a photo: a file of any format that `photos.read` reads, or a Pillow image.

        Raises ValueError, OSError or whatever Pillow raises for what it cannot read.
        """
        return self.predictions(self.probabilities(self.pixels(photo)[None]))[0]

    def pixels(self, photo: str | Path | IO[bytes] | Image.Image) -> Tensor:
        """The photo as the network takes it: uint8 (3, H, W)."""
        image = photos.upright(photo) if isinstance(photo, Image.Image) else photos.read(photo)
        return torch.as_tensor(self.centre(v2.functional.pil_to_tensor(image)))

    def stream(self, files: Sequence[str], num_workers: int = 0) -> Iterator[tuple[str, Prediction | str]]:
        """Each of `files` in their order, with its prediction or why it cannot be read; memory does not grow.

        Args:
            files: any number of paths.
            num_workers: processes that decode; 0 for this one.
        """
        batches = DataLoader(
            _Files(files, self.pixels), self.backbone.batch_size, num_workers=num_workers, collate_fn=_sorted_out
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


class _Files(Dataset[tuple[str, Tensor | None, str]]):
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
            return file, None, photos.reason(error)


def _sorted_out(items: Sequence[tuple[str, Tensor | None, str]]) -> tuple[list[str], Tensor, list[str]]:
    """Names, the pixels (B, 3, H, W) of those that could be read, and reasons, empty for these."""
    good = [pixels for _, pixels, _ in items if pixels is not None]
    pixels = torch.stack(good) if good else torch.empty(0)
    return [name for name, _, _ in items], pixels, [reason for _, _, reason in items]
