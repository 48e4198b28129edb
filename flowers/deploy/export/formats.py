"""Write and load the exported formats: torch.export, ONNX and int8 ONNX."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from flowers.deploy.export.graph import ExportableClassifier

ImageProgram = Callable[[Tensor], Tensor]  # uint8 photos (B, 3, H, W) to probabilities (B, C)


REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


_MAX_ONNX_BYTES = 2_000_000_000  # that one ONNX file may have: protobuf's bound, less the graph itself


_DYNAMIC_SHAPE = Dim("B", min=1, max=65_535), Dim.STATIC, Dim("H", min=1, max=65_535), Dim("W", min=1, max=65_535)


# What ONNX Runtime computes with whole numbers; normalisations, softmax and GELU lose more than they win by it.
_QUANTIZED_OPS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")


def require_packages() -> None:
    """Raises ValueError where what writes these files is not installed."""
    if missing := [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"to export needs {', '.join(missing)}: pip install 'flowers[export]'")


def export_program(graph: ExportableClassifier) -> ExportedProgram:
    """The graph for any number of photos of any size. Raises ValueError where PyTorch cannot trace it."""
    photos = torch.zeros(
        2, 3, 37, 53, dtype=torch.uint8
    )  # an example: of no size that the graph could mistake for fixed
    try:
        with torch.no_grad():
            program = torch.export.export(graph, (photos,), dynamic_shapes={"photos": _DYNAMIC_SHAPE})
    except RuntimeError as error:
        raise ValueError(f"torch.export cannot trace this architecture: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def write_pt2(program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
    """Writes a .pt2 file; its `notes` can be read back with `extra_files`."""
    torch.export.save(program, path, extra_files=dict(notes))


def write_onnx(program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
    """Writes an ONNX file with input `photos`, output `probabilities`, and `notes` as its metadata.

    Raises ValueError for what ONNX has no operations for, and for more weights than one file can hold.
    """
    import onnx

    size = sum(weight.numel() * weight.element_size() for weight in program.state_dict.values())
    if size > _MAX_ONNX_BYTES:
        raise ValueError(f"{size:,} bytes of weights: an ONNX file holds at most {_MAX_ONNX_BYTES:,}")
    try:
        written = torch.onnx.export(
            program,
            input_names=["photos"],
            output_names=["probabilities"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except RuntimeError as error:
        raise ValueError(f"this architecture cannot be had as ONNX: {_first_line(error)}") from error
    assert written is not None
    model = written.model_proto
    for value, sides in zip((*model.graph.input, *model.graph.output), (("B", "3", "H", "W"), ("B", "C")), strict=True):
        for dimension, name in zip(value.type.tensor_type.shape.dim, sides, strict=True):
            if dimension.dim_param:
                dimension.dim_param = name
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")  # the exporter's traces
    del model.graph.value_info[:]  # still in the exporter's names; each reader infers them anew
    onnx.helper.set_model_props(model, dict(notes))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_int8(
    source: Path, path: Path, photos: Iterable[npt.NDArray[np.uint8]], reduce_range: bool, notes: Mapping[str, str]
) -> None:
    """Writes the ONNX file `source` with most of its operations in 8 bits, weights by channel, activations unsigned.

    What comes before the first convolution (resizing, normalisation) and from the last linear layer on stays as it is.
    The range of an activation is the mean of its extremes over `photos`: their extreme would leave the many ordinary
    values few levels for the sake of one.

    Args:
        source, path: ONNX files.
        photos: (1, 3, H, W), all of one size.
        reduce_range: weights in 7 bits, for x86 CPUs without VNNI, whose sums of 16 bits overflow with 8.
        notes: the file's metadata.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(path),
            _CalibrationReader(photos),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,  # 2.7 times as fast as signed ones on x86 with VNNI
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            op_types_to_quantize=list(_QUANTIZED_OPS),
            nodes_to_exclude=_unquantized_nodes(onnx.load(prepared)),
            extra_options={"CalibMovingAverage": True},
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(notes))
    onnx.save(model, path)


def load_pt2(path: Path) -> ImageProgram:
    """A .pt2 file of our own as a function."""
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def program(photos: Tensor) -> Tensor:
        return torch.as_tensor(module(photos))

    return program


def load_onnx(path: Path) -> ImageProgram:
    """An ONNX file as a function, on the CPU, with as many threads as PyTorch takes."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # A thread that waits gives its core to others: several times as fast where other programs run too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda photos: torch.from_numpy(session.run(None, {"photos": photos.numpy()})[0])


class _CalibrationReader:
    """Photos as ONNX Runtime's calibration asks for them."""

    def __init__(self, photos: Iterable[npt.NDArray[np.uint8]]) -> None:
        self.photos: Iterator[npt.NDArray[np.uint8]] = iter(photos)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        photo = next(self.photos, None)
        return None if photo is None else {"photos": photo}


def _unquantized_nodes(model: Any) -> list[str]:
    """The names of the nodes before the first convolution and from the last linear layer on."""
    nodes = list(model.graph.node)
    first = next(place for place, node in enumerate(nodes) if node.op_type == "Conv")
    last = max(place for place, node in enumerate(nodes) if node.op_type in ("Gemm", "MatMul"))
    return [node.name for place, node in enumerate(nodes) if place < first or place >= last]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
