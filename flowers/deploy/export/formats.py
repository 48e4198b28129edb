"""The exported formats: torch.export, ONNX and int8 ONNX.

To add a format, write one class with the attributes and methods of `Exporter` and add an instance to `EXPORTERS`.
The pipeline, the parity report, model.json and the model card iterate that list.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from flowers.deploy.export.graph import ExportableClassifier
from flowers.features.onnx_program import first_line, load_onnx, quantize_onnx, to_onnx

ImageProgram = Callable[[Tensor], Tensor]
"""Maps decoded images, uint8 (B, 3, H, W), to probabilities (B, C), or (B, C + 1) with their strangeness last."""


_DYNAMIC_SHAPE = Dim("B", min=1, max=65_535), Dim.STATIC, Dim("H", min=1, max=65_535), Dim("W", min=1, max=65_535)


_OUTPUTS = {"probabilities": ("B", "C"), "strangeness": ("B", "1")}  # their axes


def export_program(graph: ExportableClassifier) -> ExportedProgram:
    """Trace the graph for any number of images of any size.

    Raises:
        ValueError: PyTorch cannot trace the architecture.
    """
    # The size of the example is one that the graph cannot mistake for a constant.
    example = torch.zeros(2, 3, 37, 53, dtype=torch.uint8)
    try:
        with torch.no_grad():
            program = torch.export.export(graph, (example,), dynamic_shapes={"photos": _DYNAMIC_SHAPE})
    except RuntimeError as error:
        raise ValueError(f"torch.export cannot trace this architecture: {first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


class ExportSource(NamedTuple):
    """What an exporter may read.

    Attributes:
        program: The traced classifier, from decoded images to calibrated probabilities.
        metadata: Texts to store in the file: classes (as JSON), temperature, architecture; with a second output, also
            reject and strangeness_threshold.
        folder: The output folder, with the files of the exporters earlier in `EXPORTERS`.
        calibration_images: Returns training images, each uint8 (1, 3, H, W), all of one size.
        reduce_range: Whether to quantize weights to 7 bits.
    """

    program: ExportedProgram
    metadata: Mapping[str, str]
    folder: Path
    calibration_images: Callable[[], Iterable[npt.NDArray[np.uint8]]]
    reduce_range: bool = False


class Exporter(Protocol):
    """A format that a trained run can be exported to.

    Attributes:
        name: The format's name in the parity report.
        file_name: The file that `write` makes in the output folder.
        description: One sentence in Markdown about the file, for the model card.
        extra: The extra in pyproject.toml that installs `packages`.
        packages: The packages that `write` and `load` import. Their versions are recorded in model.json.
        option: The boolean key of conf/export.yaml that enables the format. None if it is always written.
        agreement_key: The key of conf/export.yaml that holds the least agreement with PyTorch on labels.
        rejection_key: The same for rejections.
    """

    name: str
    file_name: str
    description: str
    extra: str
    packages: tuple[str, ...]
    option: str | None
    agreement_key: str
    rejection_key: str

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the file.

        Raises:
            ValueError: The format cannot represent the architecture.
        """

    def load(self, path: Path) -> ImageProgram:
        """Load the file as a function that runs on the CPU."""


class TorchExportExporter:
    """Writes a .pt2 file for `torch.export.load`. The metadata are its extra files."""

    name = "torch.export"
    file_name = "model.pt2"
    description = "`model.pt2` is for `torch.export.load`. Load such a file only if you trust its source."
    extra = "export"
    packages: tuple[str, ...] = ()
    option: str | None = None
    agreement_key = "min_agreement"
    rejection_key = "min_rejection_agreement"

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the .pt2 file."""
        torch.export.save(source.program, path, extra_files=dict(source.metadata))

    def load(self, path: Path) -> ImageProgram:
        """Load a .pt2 file that this project wrote."""
        module = torch.export.load(path).module()

        @torch.inference_mode()
        def program(images: Tensor) -> Tensor:
            outputs = module(images)
            return torch.cat(outputs, 1) if isinstance(outputs, tuple) else torch.as_tensor(outputs)

        return program


class OnnxExporter:
    """Writes a float32 ONNX file: input `photos`, output `probabilities`, and `strangeness` if there is rejection."""

    name = "ONNX"
    file_name = "model.onnx"
    description = "`model.onnx` computes in float32."
    extra = "export"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    option: str | None = None
    agreement_key = "min_agreement"
    rejection_key = "min_rejection_agreement"

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the ONNX file.

        Raises:
            ValueError: ONNX lacks an operation of the architecture, or the weights exceed the limit of one file.
        """
        import onnx

        program = source.program
        names = list(_OUTPUTS)[: len(program.graph_signature.user_outputs)]
        model = to_onnx(program, "photos", names)
        named_axes = [("B", "3", "H", "W"), *(_OUTPUTS[value.name] for value in model.graph.output)]
        for value, axes in zip((*model.graph.input, *model.graph.output), named_axes, strict=True):
            for dimension, axis in zip(value.type.tensor_type.shape.dim, axes, strict=True):
                if dimension.dim_param:
                    dimension.dim_param = axis
        for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
            part.ClearField("metadata_props")  # the stack traces of the exporter
        del model.graph.value_info[:]  # refers to the old names of the axes; readers infer it again
        onnx.helper.set_model_props(model, dict(source.metadata))
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def load(self, path: Path) -> ImageProgram:
        """Load an ONNX file with ONNX Runtime, with as many threads as PyTorch uses."""
        session = load_onnx(path)
        return lambda images: torch.from_numpy(np.concatenate(session.run(None, {"photos": images.numpy()}), 1))


class Int8OnnxExporter(OnnxExporter):
    """Quantizes the float32 ONNX file; see `quantize_onnx`."""

    name = "ONNX int8"
    file_name = "model.int8.onnx"
    description = "`model.int8.onnx` computes in 8 bits, for small devices."
    option: str | None = "int8"
    agreement_key = rejection_key = "int8_min_agreement"

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the quantized ONNX file."""
        import onnx

        quantize_onnx(source.folder / OnnxExporter.file_name, path, source.calibration_images(), source.reduce_range)
        model = onnx.load(path)
        onnx.helper.set_model_props(model, dict(source.metadata))
        onnx.save(model, path)


EXPORTERS: list[Exporter] = [TorchExportExporter(), OnnxExporter(), Int8OnnxExporter()]
"""The formats in the order in which they are written. Int8 ONNX reads the ONNX file."""
