"""Networks as ONNX programs for ONNX Runtime, in float32 and in 8 bits."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.export import ExportedProgram

_MAX_ONNX_BYTES = 2_000_000_000  # protobuf's limit of 2 GiB for one file, minus room for the graph

# The operations that ONNX Runtime computes with integers. Normalization, softmax and GELU lose more accuracy in 8 bits
# than they gain speed.
_QUANTIZED_OPS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")


def to_onnx(program: ExportedProgram, input_name: str, output_names: Sequence[str]) -> Any:
    """Return a traced network as an `onnx.ModelProto`.

    Raises:
        ValueError: ONNX lacks an operation of the architecture, or the weights exceed the limit of one file.
    """
    size = sum(weight.numel() * weight.element_size() for weight in program.state_dict.values())
    if size > _MAX_ONNX_BYTES:
        raise ValueError(f"the weights have {size:,} bytes: an ONNX file holds at most {_MAX_ONNX_BYTES:,}")
    try:
        exported = torch.onnx.export(
            program,
            input_names=[input_name],
            output_names=list(output_names),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except RuntimeError as error:
        raise ValueError(f"this architecture cannot be exported to ONNX: {first_line(error)}") from error
    assert exported is not None
    return exported.model_proto


def quantize_onnx(
    source: Path,
    path: Path,
    images: Iterable[npt.NDArray[np.uint8]],
    reduce_range: bool = False,
    has_head: bool = True,
) -> None:
    """Quantize a float32 ONNX file: weights per channel, unsigned activations.

    Everything before the first convolution (resizing, normalization) and from the head on stays in float32. The range
    of an activation is the mean of its extremes over the images. Their overall extremes would leave few levels for the
    many ordinary values.

    Args:
        source: The float32 file.
        path: The file to write.
        images: Inputs that determine the ranges of the activations.
        reduce_range: Whether to quantize weights to 7 bits.
        has_head: Whether the network ends with a linear head, and not with its features.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        quantization.quantize_static(
            str(prepared),
            str(path),
            _CalibrationReader(model.graph.input[0].name, images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,  # 2.7 times as fast as signed on x86 with VNNI
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,  # x86 CPUs without VNNI add in 16 bits, which overflow with 8 bits
            calibrate_method=quantization.CalibrationMethod.MinMax,
            op_types_to_quantize=list(_QUANTIZED_OPS),
            nodes_to_exclude=_unquantized_nodes(model, has_head),
            extra_options={"CalibMovingAverage": True},
        )


# Idle threads yield their core instead of spinning: several times as fast beside other programs.
SESSION_SETTINGS = {"session.intra_op.allow_spinning": "0"}


def load_onnx(program: Path | bytes, settings: Mapping[str, str] = SESSION_SETTINGS) -> Any:
    """Return a session of ONNX Runtime on the CPU, with as many threads as PyTorch uses, for a file or its content."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    source = program if isinstance(program, bytes) else str(program)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def first_line(error: Exception) -> str:
    """Return the first line of what an exporter says."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class _CalibrationReader:
    """Passes images to the calibration of ONNX Runtime."""

    def __init__(self, name: str, images: Iterable[npt.NDArray[np.uint8]]) -> None:
        self.name = name
        self.images: Iterator[npt.NDArray[np.uint8]] = iter(images)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image}


def _unquantized_nodes(model: Any, has_head: bool) -> list[str]:
    """Return the names of the nodes before the first convolution and after the features.

    With one output, the last linear layer is the head. With two, what leads to only one of them comes after the
    features.
    """
    nodes = list(model.graph.node)
    first = next(index for index, node in enumerate(nodes) if node.op_type == "Conv")
    if len(model.graph.output) == 1:
        linear = [index for index, node in enumerate(nodes) if node.op_type in ("Gemm", "MatMul")]
        last = linear[-1] if has_head else len(nodes)
        return [node.name for index, node in enumerate(nodes) if index < first or index >= last]
    used_by: dict[str, set[str]] = {value.name: {value.name} for value in model.graph.output}
    for node in reversed(nodes):
        for name in node.input:
            used_by.setdefault(name, set()).update(*(used_by.get(output, ()) for output in node.output))
    return [
        node.name
        for index, node in enumerate(nodes)
        if index < first or len(set().union(*(used_by.get(output, ()) for output in node.output))) == 1
    ]
