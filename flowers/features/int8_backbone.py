"""The frozen backbone in 8 bits: about twice as fast on a CPU with instructions for them.

ONNX Runtime runs the program. It is made once per backbone and split, and kept in the cache with the features of
validation images by both engines, so that each head's answers can be compared with those of PyTorch.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim

from flowers.features.frozen_backbone import PASS_VERSION, FrozenBackbone, fuse_conv_bn, precision_dtype
from flowers.features.onnx_program import first_line, load_onnx, quantize_onnx, to_onnx
from flowers.features.tta import mean_over_views
from flowers.models.backbones import state_dict_sha256
from flowers.models.network import Network
from flowers.runtime.extras import require_extra
from flowers.runtime.files import (
    cache_dir,
    cache_lock,
    evict_least_recently_used,
    optional_cache,
    read_cache,
    write_cache,
)
from flowers.runtime.hardware import has_int8_instructions
from flowers.runtime.logging import progress_bar

if TYPE_CHECKING:
    from flowers.data.datamodule import ImageDataModule  # imports Lightning, which a prediction does not need

log = logging.getLogger(__name__)

Answers = Callable[[Tensor], Tensor]
"""Maps features (N, F) to the answers (N,) of a classifier, such as the most likely classes."""

MIN_AGREEMENT = 0.99  # share of the answers that must be those of PyTorch

_FORMAT = "1"  # of the file in the cache; raise it with every change of `quantize_onnx`
_CALIBRATION_IMAGES = 128
_COMPARED_IMAGES = 500
_CACHE_BYTES = 2 * 2**30


class Int8Backbone:
    """A function from uint8 images (B, 3, S, S) to features (B, F) in float32, as `FrozenBackbone` is.

    Args:
        content: What `_make_program` has made.
        key: What the features depend on, other than the images.
        tta: See `FrozenBackbone`.

    Attributes:
        batch_size: The size of the batches that it computes.
    """

    batch_size = 16

    def __init__(self, content: bytes, key: str, tta: str = "none") -> None:
        self.key, self.tta = key, tta
        self.compared = safetensors.torch.load(content)
        self.session = load_onnx(self.compared.pop("program").numpy().tobytes())

    def __call__(self, images: Tensor) -> Tensor:
        """Compute features (B, F) of uint8 images (B, 3, S, S). They do not depend on the batch."""
        return mean_over_views(self._run, images, self.tta)

    def _run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.contiguous().numpy()})[0])

    def check_agreement(self, answers: Answers) -> None:
        """Compare the answers for validation images with those of PyTorch, and say how many are the same.

        Args:
            answers: What answers, such as a trained head.

        Raises:
            ValueError: The agreement is below `MIN_AGREEMENT`.
        """
        with torch.inference_mode():
            is_same = answers(self.compared["expected"]) == answers(self.compared["found"])
        same, count = int(is_same.sum()), len(is_same)
        if same < MIN_AGREEMENT * count:
            raise ValueError(
                f"engine=int8 answers {count - same} of {count} val images differently than PyTorch: agreement "
                f"{same / count:.4f}, expected at least {MIN_AGREEMENT}; use engine=pytorch"
            )
        # A warning, so that programs without a log file show it: the features are approximations.
        log.warning("engine=int8: the same answers as PyTorch for %d of %d val images", same, count)


def check_int8(accelerator: str) -> None:
    """Check that this machine can run `engine=int8`, before any image is read.

    Args:
        accelerator: Lightning's name, "auto" resolved.

    Raises:
        ValueError: A package or an instruction of the CPU is missing, or another device is asked for.
    """
    require_extra("engine=int8", "export", "onnx", "onnxscript", "onnxruntime")
    if accelerator != "cpu":
        raise ValueError(f"engine=int8 runs on the CPU, found accelerator={accelerator}: give accelerator=cpu")
    if not has_int8_instructions():
        raise ValueError("engine=int8 needs a CPU with VNNI or AMX, found one without: use engine=pytorch")


def load_int8_backbone(
    model: Network, precision: str, tta: str, open_data: "Callable[[], ImageDataModule]"
) -> Int8Backbone:
    """Find the 8-bit program of a model's backbone in the cache, or make it.

    Call `Int8Backbone.check_agreement` before its features are used.

    Args:
        model: The model, on the CPU.
        precision: The Lightning precision of PyTorch, whose answers are the reference.
        tta: See `FrozenBackbone`.
        open_data: Returns the images of the run, in its split: training images set the ranges of the activations,
            validation images are compared. It is called only if there is no program yet.

    Raises:
        ValueError: See `check_int8`; or ONNX cannot represent the network.
    """
    check_int8(model.device.type)
    key = _program_key(model, precision)
    path = cache_dir() / "int8" / key
    with cache_lock(path.with_suffix(".lock"), "another process makes this int8 program: waiting for it"):
        content = read_cache(path)
        if content is None:
            content = _make_program(model, precision, open_data())
            if write_cache(path, content):
                with optional_cache(path.parent):
                    evict_least_recently_used(path.parent.glob("*"), _CACHE_BYTES)
    return Int8Backbone(content, key, tta)


def _program_key(model: Network, precision: str) -> str:
    hparams = model.hparams
    settings = {
        "format": _FORMAT,
        "pass": PASS_VERSION,
        "backbone": state_dict_sha256(model.backbone),
        "split": hparams["split_digest"],
        "precision": str(precision_dtype(precision)),
        "versions": " ".join(version(name) for name in ("torch", "onnxruntime")),
    }
    settings |= {name: hparams[name] for name in ("architecture", "options")} | model.preprocessing.to_dict()
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode()).hexdigest()[:32]


def _make_program(model: Network, precision: str, data: "ImageDataModule") -> bytes:
    """Return the 8-bit program, with the features of validation images by PyTorch and by the program."""
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        _write_float_program(model, source)
        quantize_onnx(source, path, _calibration_images(data), has_head=False)
        program = path.read_bytes()
    session, frozen = load_onnx(program), FrozenBackbone(model, precision)
    val = data.dataset("val")
    indices = _sample(len(val), _COMPARED_IMAGES)
    batches = data.batches(val, indices, frozen.batch_size)
    expected, found = [], []
    for images, _ in progress_bar(batches, "Comparing int8 with PyTorch"):
        expected.append(frozen(images).float())
        found.append(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))
    content = torch.frombuffer(bytearray(program), dtype=torch.uint8)
    return safetensors.torch.save({"program": content, "expected": torch.cat(expected), "found": torch.cat(found)})


class _NormalizedBackbone(nn.Module):
    """Maps uint8 images to features. BatchNorm is fused into the convolutions."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.normalize, self.backbone = model.normalize, fuse_conv_bn(model.backbone)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.contiguous()

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.backbone(self.normalize(images)))


def _write_float_program(model: Network, path: Path) -> None:
    import onnx

    side = model.preprocessing.image_size
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    shapes: dict[str, Any] = {"images": {0: Dim("B")}}
    try:
        with torch.no_grad():
            program = torch.export.export(_NormalizedBackbone(model).eval(), (example,), dynamic_shapes=shapes)
        onnx.save(to_onnx(program, "images", ["features"]), path)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"engine=int8: {first_line(error)}; use engine=pytorch") from error


def _calibration_images(data: "ImageDataModule") -> Iterator[npt.NDArray[np.uint8]]:
    train = data.dataset("train")
    batches = data.batches(train, _sample(len(train), _CALIBRATION_IMAGES), batch_size=1)
    return (images.numpy() for images, _ in progress_bar(batches, "Calibrating int8"))


def _sample(size: int, count: int) -> list[int]:
    """Return `count` of the numbers below `size`, or all if there are fewer: the same ones each time."""
    indices: list[int] = np.random.default_rng(0).permutation(size)[:count].tolist()
    return indices
