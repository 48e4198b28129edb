"""The exported formats: torch.export, ONNX, int8 ONNX, a folder for a model hub, and a page for browsers.

To add a format, write one class with the attributes and methods of `Exporter` and add an instance to `EXPORTERS`, or
register an instance as an entry point of `flowers.exporters`. The pipeline, the parity report, model.json and the model
card iterate `all_exporters`.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from flowers.deploy.classifier import Classifier
from flowers.deploy.export.graph import ExportableClassifier
from flowers.deploy.hub_folder import write_hub_folder
from flowers.deploy.model_files import WEIGHTS_FILE
from flowers.features.onnx_program import SESSION_SETTINGS, first_line, load_onnx, quantize_onnx, to_onnx
from flowers.settings.registry import load_parts

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
        classifier: The trained classifier, on the CPU.
        facts: What model.json says about it.
        program: Returns the traced classifier, from decoded images to calibrated probabilities.
        metadata: Texts to store in the file: classes (as JSON), temperature, architecture; with a second output, also
            reject and strangeness_threshold.
        folder: The output folder, with the files of the exporters earlier in `EXPORTERS`.
        calibration_images: Returns training images, each uint8 (1, 3, H, W), all of one size.
        reduce_range: Whether to quantize weights to 7 bits.
    """

    classifier: Classifier
    facts: Mapping[str, Any]
    program: Callable[[], ExportedProgram]
    metadata: Mapping[str, str]
    folder: Path
    calibration_images: Callable[[], Iterable[npt.NDArray[np.uint8]]]
    reduce_range: bool = False


class Exporter(Protocol):
    """A format that a trained run can be exported to.

    Attributes:
        format: The name in `formats=`.
        name: The format's name in the parity report.
        file_name: The file that `write` makes in the output folder.
        description: One sentence in Markdown about the file, for the model card.
        extra: The extra in pyproject.toml that installs `packages`.
        packages: The packages that `write` and `load` import. Their versions are recorded in model.json.
        option: The boolean key of conf/export.yaml that disables the format. None if there is none.
        agreement_key: The key of conf/export.yaml that holds the least agreement with PyTorch on labels.
        rejection_key: The same for rejections.
    """

    format: str
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

    format = "torch_export"
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
        torch.export.save(source.program(), path, extra_files=dict(source.metadata))

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

    format = "onnx"
    name = "ONNX"
    file_name = "model.onnx"
    description = "`model.onnx` computes in float32."
    extra = "export"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    option: str | None = None
    agreement_key = "min_agreement"
    rejection_key = "min_rejection_agreement"
    # Idle threads yield their core instead of spinning: several times as fast beside other programs.
    session_settings: Mapping[str, str] = SESSION_SETTINGS

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the ONNX file.

        Raises:
            ValueError: ONNX lacks an operation of the architecture, or the weights exceed the limit of one file.
        """
        import onnx

        program = source.program()
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
        session = load_onnx(path, self.session_settings)
        return lambda images: torch.from_numpy(np.concatenate(session.run(None, {"photos": images.numpy()}), 1))


class Int8OnnxExporter(OnnxExporter):
    """Quantizes the float32 ONNX file; see `quantize_onnx`."""

    format = "int8"
    name = "ONNX int8"
    file_name = "model.int8.onnx"
    description = "`model.int8.onnx` computes in 8 bits, for small devices."
    option: str | None = "int8"
    agreement_key = rejection_key = "int8_min_agreement"

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the quantized ONNX file."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            exact = source.folder / OnnxExporter.file_name
            if not exact.is_file():
                exact = Path(folder) / OnnxExporter.file_name
                super().write(source, exact)
            quantize_onnx(exact, path, source.calibration_images(), source.reduce_range)
        model = onnx.load(path)
        onnx.helper.set_model_props(model, dict(source.metadata))
        onnx.save(model, path)


class HubExporter:
    """Writes model.safetensors with the parameter names of torchvision or timm, and config.json."""

    format = "hub"
    name = "hub"
    file_name = WEIGHTS_FILE
    description = "`model.safetensors` holds the weights alone, for torchvision or timm; `config.json` holds the rest."
    extra = "export"
    packages: tuple[str, ...] = ()
    option: str | None = None
    agreement_key = "min_agreement"
    rejection_key = "min_rejection_agreement"

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the folder."""
        classifier, facts = source.classifier, source.facts
        described = {
            "temperature": classifier.temperature,
            "tta": classifier.tta,
            "split_digest": facts["trained"]["digest"]["split"],
            **{name: facts[name] for name in ("photos", "trained")},
            "metrics": facts["scores"],
        }
        write_hub_folder(path.parent, classifier.model, described, classifier.rejection)

    def load(self, path: Path) -> ImageProgram:
        """Load the folder of `path` as any user of this project does."""
        return Classifier.load(path.parent, "cpu", "32-true").outputs_of_images


class WebOnnxExporter(Int8OnnxExporter):
    """Writes the int8 ONNX file that the web page loads; `write_web_page` adds the page."""

    format = "web"
    name = "web page"
    file_name = "web/model.onnx"
    description = "`web/` is a page that classifies photos in a browser: put it on any web server."
    option: str | None = None
    # Browsers multiply without the overflow of x86 CPUs that lack VNNI: on such a CPU, ONNX Runtime avoids it too.
    session_settings: Mapping[str, str] = {**OnnxExporter.session_settings, "session.x64quantprecision": "1"}

    def write(self, source: ExportSource, path: Path) -> None:
        """Write the quantized ONNX file as ONNX Runtime optimizes it, so that no browser has to."""
        import onnxruntime

        path.parent.mkdir()
        with tempfile.TemporaryDirectory() as folder:
            quantized = source.folder / Int8OnnxExporter.file_name
            if not quantized.is_file():
                quantized = Path(folder) / Int8OnnxExporter.file_name
                super().write(source, quantized)
            onnxruntime.disable_telemetry_events()
            options = onnxruntime.SessionOptions()
            # The next level is for the CPU of this machine.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(path)
            onnxruntime.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])


EXPORTERS: list[Exporter] = [
    TorchExportExporter(),
    OnnxExporter(),
    Int8OnnxExporter(),
    HubExporter(),
    WebOnnxExporter(),
]
"""The formats in the order in which they are written: each may read those before it."""


def all_exporters() -> list[Exporter]:
    """Return `EXPORTERS`, and then those that other packages register.

    Raises:
        ValueError: One of these cannot be imported, or has the name of another one.
    """
    return [*EXPORTERS, *load_parts("exporters", lambda exporter: exporter.format, {each.format for each in EXPORTERS})]
