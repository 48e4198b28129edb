"""Measure a GPU in less than 8 minutes: training, inference, decoding, and a whole run.

A worker process takes the measurements one after the other. If one takes too long or crashes, another worker takes
the next ones. Each result is written before the next measurement starts.
"""

import io
import json
import logging
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.settings import Speed
from flowers.data.images import read_image
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.classifier import ImageClassifier
from flowers.models.cuda_graph import CudaGraph
from flowers.runs.run_folder import RESULT_FILE, provenance
from flowers.runtime.files import atomic_write_text, read_json
from flowers.runtime.hardware import device_name, has_native_bf16, resolve_device
from flowers.runtime.logging import configure_logging
from flowers.runtime.timing import synchronize, throughput
from flowers.settings.overrides import quote_override

log = logging.getLogger(__name__)

ROWS_FILE, TABLE_FILE = "gpu.jsonl", "gpu.md"

_BUDGET = 460.0  # seconds of all measurements
_SECONDS = 2.0  # of a measurement, after it has warmed up
_DECODED = 256  # photos


class Sizes(NamedTuple):
    """What is measured."""

    models: Sequence[str]
    batches: Sequence[int]
    image_size: int
    report: Sequence[str]  # further overrides of the run


SIZES = {
    "all": Sizes(("resnet152", "resnet50"), (64, 256), 224, ("trainer=gpu",)),
    "small": Sizes(
        ("resnet18",),
        (4,),
        32,
        (
            *("trainer=cpu", "data.image_size=32", "data.resize=32", "data.num_workers=0"),
            *("model.architecture=resnet18", "model.weights=null", "head.epochs=1", "finetune.epochs=2"),
        ),
    ),
}


class Case(NamedTuple):
    """A measurement: the name of its row, its function in `MEASUREMENTS`, the arguments, and its limit in seconds."""

    name: str
    kind: str
    arguments: dict[str, Any]
    limit: float


def run_gpu_benchmark(settings: Speed) -> dict[str, Any]:
    """Take all measurements, each within its limit, and write `gpu.jsonl` and `gpu.md` to `settings.output`.

    Args:
        settings: Composed from benchmarks/conf/speed.yaml; `gpu` is "all" or "small".

    Returns:
        The rows by name.

    Raises:
        ValueError: There is no GPU, or no output; or the output has an earlier measurement.
    """
    configure_logging()
    if settings.gpu == "all" and not torch.cuda.is_available():
        raise ValueError("gpu=all: no GPU found on this machine: expected one, or gpu=small to try it on the CPU")
    if not settings.output:
        raise ValueError("gpu=…: output is missing: give output=FOLDER")
    output = Path(settings.output).resolve()
    if (output / ROWS_FILE).exists():
        raise ValueError(f"output={settings.output} holds an earlier measurement: give another folder")
    output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if settings.gpu == "all" else "cpu"
    start, rows, worker = time.monotonic(), {}, Worker()
    conditions = {"device": device_name(resolve_device(device)), "gpu": settings.gpu, **provenance()}
    for case in list_cases(settings, output, device):
        left = _BUDGET - (time.monotonic() - start)
        row = worker.measure(case, min(case.limit, left)) if left > 1 else {"problem": "not started: the time was over"}
        rows[case.name] = row
        with (output / ROWS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": case.name, **row, **conditions}) + "\n")
        atomic_write_text(output / TABLE_FILE, markdown_table(rows, conditions["device"]))
        log.info("%s: %s", case.name, _row_text(row))
    worker.stop()
    log.info("%.0f s in all, table: %s", time.monotonic() - start, output / TABLE_FILE)
    return rows


def list_cases(settings: Speed, output: Path, device: str) -> list[Case]:
    """Return the measurements, the most important ones first: those with torch.compile come last."""
    sizes = SIZES[settings.gpu or "all"]
    common = {"device": device, "image_size": sizes.image_size}
    pairs = [(model, batch) for model in sizes.models for batch in sizes.batches]
    train = {
        way: [
            Case(f"train {m}, batch {b}, {way}", "train", {**common, "model": m, "batch": b, "way": way}, limit)
            for m, b in pairs
        ]
        for way, limit in (("plain", 30.0), ("bf16 channels_last", 30.0), ("cuda graph", 30.0), ("compiled", 120.0))
    }
    if device == "cpu":
        train["cuda graph"] = []
    infer = [
        Case(
            f"infer {m}, batch {sizes.batches[-1]}, {way}",
            "infer",
            {**common, "model": m, "batch": sizes.batches[-1], "way": way},
            limit,
        )
        for m in sizes.models
        for way, limit in (("eager", 30.0), ("fused", 30.0), ("exported", 60.0), ("compiled", 90.0))
    ]
    data = {"root": str(Path(settings.data.root).resolve())}
    weights = "null" if settings.model.weights is None else quote_override(settings.model.weights)
    lines = ["experiment=report", "data=folder", f"data.root={quote_override(data['root'])}"]
    lines += ["data.on_corrupt=skip", f"model.architecture={settings.model.architecture}", f"model.weights={weights}"]
    report = {"settings": [*lines, *sizes.report], "folder": str(output / "report"), "device": device}
    return [
        *train["cuda graph"],
        *train["bf16 channels_last"],
        *train["plain"],
        Case("experiment=report, start to exit", "report", report, 180.0),
        *[case for case in infer if case.arguments["way"] != "compiled"],
        Case("decode, one CPU core", "decode", {**data, "device": "cpu"}, 30.0),
        Case("decode, nvJPEG", "decode", {**data, "device": "cuda"}, 30.0),
        *train["compiled"],
        *[case for case in infer if case.arguments["way"] == "compiled"],
    ]


def measure_training(model: str, batch: int, image_size: int, device: str, way: str) -> dict[str, Any]:
    """Measure training steps on a batch on the device.

    Args:
        model: The architecture.
        batch: Images per step.
        image_size: Their side in pixels.
        device: "cuda" or "cpu".
        way: "plain" (fp32 with TF32 in convolutions, Adam), or "bf16 channels_last" with a fused Adam; that as a "cuda
            graph", which is what a run does; or that "compiled".
    """
    place, is_plain = torch.device(device), way == "plain"
    classifier = ImageClassifier(model, [str(number) for number in range(5)], compiled=way == "compiled").to(place)
    network: nn.Module = classifier
    if is_plain:
        network = nn.Sequential(classifier.normalize, classifier.backbone, classifier.head)
        network = network.to(memory_format=torch.contiguous_format).train()
    fused = {} if is_plain else {"fused": True}
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, **fused)  # type: ignore[arg-type]
    images, labels = _random_batch(batch, image_size, place)
    is_bf16 = not is_plain and has_native_bf16(device)
    if way == "cuda graph":
        pixels = classifier.normalize(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(place.type, torch.bfloat16, enabled=is_bf16):
            classifier.graphs = (CudaGraph(classifier.backbone, pixels),)

    def step() -> int:
        with torch.autocast(place.type, torch.bfloat16, enabled=is_bf16):
            loss = cross_entropy(network(images).float(), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return batch

    return _measure(step, place) | {"precision": "bf16" if is_bf16 else "32"}


@torch.no_grad()
def measure_inference(model: str, batch: int, image_size: int, device: str, way: str) -> dict[str, Any]:
    """Measure the backbone in evaluation mode: eager, as a run computes features (fused), exported or compiled."""
    place = torch.device(device)
    classifier = ImageClassifier(model, ["a", "b"]).to(place).eval()
    is_bf16 = has_native_bf16(device)
    pixels, _ = _random_batch(batch, image_size, place)
    images = classifier.normalize(pixels).contiguous(memory_format=torch.channels_last)
    network: Callable[[Tensor], Any] = classifier.backbone
    if way == "fused":  # normalizes the pixels, and always computes batches of one size
        network = frozen = FrozenBackbone(classifier, "bf16-mixed" if is_bf16 else "32-true")
        batch = frozen.batch_size
        images, _ = _random_batch(batch, image_size, place)
    elif way == "exported":
        network = torch.export.export(classifier.backbone, (images,)).module()
    elif way == "compiled":
        classifier.backbone.compile()

    def forward() -> int:
        with torch.autocast(place.type, torch.bfloat16, enabled=is_bf16 and way != "fused"):
            network(images)
        return batch

    return _measure(forward, place) | {"precision": "bf16" if is_bf16 else "32"}


def measure_decoding(root: str, device: str) -> dict[str, Any]:
    """Measure how many photos a second are decoded from memory: by one CPU core, or by nvJPEG on the GPU."""
    paths = sorted(path for path in Path(root).glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))[:_DECODED]
    if not paths:
        raise ValueError(f"no JPEG files in the folders of {root}")
    contents = [path.read_bytes() for path in paths]
    if device == "cpu":
        torch.set_num_threads(1)
        return _measure(
            lambda: sum(read_image(io.BytesIO(content)) is not None for content in contents), torch.device("cpu")
        )
    from torchvision.io import decode_jpeg

    if not torch.cuda.is_available():
        raise ValueError("nvJPEG needs a GPU")
    tensors = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    return _measure(lambda: len(decode_jpeg(tensors, device="cuda")), torch.device("cuda"))


def measure_report(settings: Sequence[str], folder: str, device: str) -> dict[str, Any]:
    """Train from start to exit; return the seconds of each stage and how busy the GPU was."""
    environment = os.environ | {"FLOWERS_CACHE": f"{folder}-cache"}  # a first run: nothing is cached
    command = [sys.executable, "-m", "flowers.train", *settings, f"hydra.run.dir={quote_override(folder)}"]
    start, last = time.monotonic(), ""
    epochs: list[float] = []
    busy: list[tuple[float, float]] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    watcher = threading.Thread(target=_watch_gpu, args=(process, busy), daemon=True)
    if device == "cuda":
        watcher.start()
    assert process.stdout is not None
    for line in process.stdout:
        last = line.strip() or last
        if line.startswith("finetune  epoch"):
            epochs.append(time.monotonic())
    code, seconds = process.wait(), time.monotonic() - start
    shutil.rmtree(f"{folder}-cache", ignore_errors=True)
    if code:
        raise RuntimeError(last)
    result = read_json(Path(folder, RESULT_FILE))
    stages = result["cost"]["seconds"]
    row: dict[str, Any] = {"seconds": seconds, "accuracy": result["val"]["accuracy"]}
    row |= {f"{stage}_seconds": value for stage, value in stages.items()}
    row |= {"start_and_end_seconds": seconds - sum(stages.values())}
    row |= {f"{stage}_images_per_second": value for stage, value in result["cost"]["photos_per_second"].items()}
    inside = [share for at, share in busy if epochs and epochs[0] <= at <= epochs[-1]]
    if inside:  # between the ends of the first and of the last epoch of the fine-tune stage
        row["finetune_gpu_busy_percent"] = statistics.mean(inside)
    return row


def _watch_gpu(process: "subprocess.Popen[str]", busy: list[tuple[float, float]]) -> None:
    """Record the share of the time in which a kernel ran, in percent, as nvidia-smi says it, until a process ends."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
    while process.poll() is None:
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if answer.isdigit():
            busy.append((time.monotonic(), float(answer)))
        time.sleep(0.5)


def _random_batch(batch: int, image_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    images = torch.randint(256, (batch, 3, image_size, image_size), dtype=torch.uint8, device=device)
    return images, torch.arange(batch, device=device) % 5


def _measure(work: Callable[[], int], device: torch.device) -> dict[str, Any]:
    """Return the images per second, the seconds of the first three calls, and the peak of the GPU memory."""
    start = time.perf_counter()
    for _ in range(3):
        work()
    synchronize(device)
    row = {"warm_up_seconds": time.perf_counter() - start}
    calls = 1 if device.type == "cpu" else 5  # keeps a GPU busy between two looks at the clock
    row["images_per_second"] = throughput(lambda: sum(work() for _ in range(calls)), _SECONDS, device)
    if device.type == "cuda":
        row["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return row


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": measure_training,
    "infer": measure_inference,
    "decode": measure_decoding,
    "report": measure_report,
}


def _serve(connection: Connection) -> None:
    """Say that it is ready, and take measurements until the other side ends. What one raises is its result."""
    connection.send("ready")
    while True:
        try:
            kind, arguments = connection.recv()
        except EOFError:
            return
        threads = torch.get_num_threads()
        try:
            row = MEASUREMENTS[kind](**arguments)
        except Exception as error:  # out of memory, or a network that does not compile: anything
            row = {"problem": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
        torch.set_num_threads(threads)
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        connection.send(row)


class Worker:
    """A process that takes measurements. A new one replaces it if it takes too long or dies."""

    def __init__(self) -> None:
        self._process: Any = None

    def measure(self, case: Case, limit: float) -> dict[str, Any]:
        """Return the row of a measurement: its figures, or its `problem`."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,))
            self._process.start()
            self._is_ready = False
            other.close()
        start, problem = time.monotonic(), ""
        self._connection.send((case.kind, case.arguments))
        try:
            if not self._is_ready:  # it imports torch, which counts for no measurement
                self._connection.recv()
                self._is_ready, start = True, time.monotonic()
            row = self._connection.recv() if self._connection.poll(limit) else None
            problem = f"took longer than {limit:.0f} s"
        except (EOFError, ConnectionResetError):
            row, problem = None, "its process died"
        if row is None:
            self.stop()
        return (row or {"problem": problem}) | {"took_seconds": time.monotonic() - start}

    def stop(self) -> None:
        """End the process, and what it started."""
        if self._process is not None:
            for child in _children(self._process.pid):
                os.kill(child, 15)  # a training run saves and stops
            self._process.kill()
            self._process.join()
            self._process = None


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text(encoding="ascii").split()] if path.exists() else []


def markdown_table(rows: Mapping[str, Mapping[str, Any]], device: str) -> str:
    """Return the rows as a Markdown table."""
    lines = [f"Measured on {device}.", "", "| measurement | result |", "| --- | --- |"]
    lines += [f"| {name} | {_row_text(row).replace('|', '/')} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _row_text(row: Mapping[str, Any]) -> str:
    if "problem" in row:
        return f"not measured: {row['problem']}"
    shown = [(name.replace("_", " "), value) for name, value in row.items() if name != "took_seconds"]
    return ", ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown)
