"""Export a trained run: write each format, load it again, and compare it with the model."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.export import ExportedProgram

from flowers.data.dataset import ImageDataset
from flowers.data.remote import is_remote
from flowers.data.transforms import eval_transform
from flowers.deploy.classifier import Classifier
from flowers.deploy.export.formats import (
    Exporter,
    ExportSource,
    ImageProgram,
    all_exporters,
    export_program,
)
from flowers.deploy.export.graph import ExportableClassifier
from flowers.deploy.export.model_card import render_license_note, render_model_card
from flowers.deploy.export.parity import (
    REFERENCE,
    check_agreement,
    collect_probabilities,
    compare_outputs,
    measure_speeds,
    median_size,
    parity_rows,
    parity_table,
)
from flowers.deploy.export.web_page import read_web_runtime, write_web_page
from flowers.deploy.model_files import CONFIG_FILE, WEIGHTS_FILE
from flowers.runs.run import Run
from flowers.runs.run_folder import (
    BEST_CHECKPOINT,
    RESULT_FILE,
    provenance,
)
from flowers.runtime.extras import require_extra
from flowers.runtime.files import atomic_directory, atomic_write_text, cache_dir, cache_lock, read_json, write_json
from flowers.runtime.hardware import device_name, has_native_bf16
from flowers.runtime.text import one_line, shell_setting
from flowers.settings.schema.programs import ExportSettings
from flowers.settings.validation import format_setting

_COMPARED = 256  # validation images: in float32, a ResNet-50 takes minutes for 661


def run_export(settings: ExportSettings) -> dict[str, Any]:
    """Export a run's best checkpoint to the new folder `settings.output`.

    Args:
        settings: Composed from conf/export.yaml.

    Returns:
        The parity report, as parity.json holds it.

    Raises:
        ValueError: A setting is wrong, an extra is missing, the run or its images cannot be used, or a version
            disagrees with the model. Then nothing is written.
    """
    options = settings.to_dict()
    exporters = [
        exporter
        for exporter in all_exporters()
        if exporter.format in settings.formats and (exporter.option is None or options[exporter.option])
    ]
    output = Path(settings.output).resolve()
    _check_settings(settings, exporters, output)
    web_runtime = read_web_runtime(settings.web_runtime) if "web" in settings.formats else None
    run = Run.open(settings.run, settings.photos).replace(root_key="photos", tta=settings.tta)
    reference = Reference(run, settings.on_corrupt, settings.reject)

    console = Console()
    output.parent.mkdir(parents=True, exist_ok=True)
    # One export at a time: two would distort each other's speeds.
    waiting = "another export measures its speed: waiting for it"
    with cache_lock(cache_dir() / "export.lock", waiting), atomic_directory(output) as folder:
        write_programs(reference, exporters, folder, settings.calibration_images, settings.reduce_range)
        programs = {exporter.name: exporter.load(folder / exporter.file_name) for exporter in exporters}
        rejection = reference.classifier.rejection
        threshold = None if rejection is None else rejection.threshold
        console.print(f"comparing {len(programs)} formats with {REFERENCE} on {len(reference.labels)} photos of val")
        rows = compare_outputs(run_all_programs(reference, programs), reference.labels, threshold)
        keys = [key for exporter in exporters for key in (exporter.agreement_key, exporter.rejection_key)]
        minimums = {key: options[key] for key in keys if rejection is not None or key != "min_rejection_agreement"}
        check_agreement(rows, exporters, minimums, len(reference.labels))
        speeds = measure_programs(reference, programs, settings.batch, settings.rounds, settings.seconds)
        report = build_parity_report(folder, exporters, rows, speeds)
        report |= {"limits": minimums, "photos": len(reference.labels)}
        write_json(report, folder / "parity.json")
        facts = write_model_files(reference, exporters, folder, report)
        if web_runtime is not None:
            write_web_page(folder / "web", facts, web_runtime)
    console.print(parity_table(report["versions"]))
    console.print(one_line(f"exported to {output}"), soft_wrap=True, markup=False, highlight=False)
    return report


def _check_settings(settings: ExportSettings, exporters: Sequence[Exporter], output: Path) -> None:
    """Check what can be checked before the run is read."""
    if not exporters:
        raise ValueError(f"formats={format_setting(settings.formats)} int8=false: expected at least one format")
    for exporter in exporters:
        require_extra(f"export to {exporter.name}", exporter.extra, *exporter.packages)
    if output.exists():
        raise ValueError(f"output={settings.output}: exists already; give a new folder or remove this one")


class Reference:
    """What exported programs are compared with: the classifiers of a finished run, on a CPU.

    They are compared on its validation images, or on 256 of them.

    Args:
        run: A finished run, by its best checkpoint, with the test-time augmentation of the programs.
        on_corrupt: "error" or "skip". None to do as in training.
        reject: See `Classifier.load`.

    Raises:
        ValueError: The checkpoint is not the best one of a finished run, or the images of its split are gone.
    """

    def __init__(self, run: Run, on_corrupt: str | None = None, reject: float | None = None) -> None:
        if run.checkpoint.resolve() != run.folder / BEST_CHECKPOINT:
            raise ValueError(
                f"run={run.checkpoint}: expected a run folder or its {BEST_CHECKPOINT}: an export needs the scores and "
                "the split of the run, which a checkpoint alone lacks"
            )
        if run.result is None:
            resume = shell_setting("resume", run.folder)
            raise ValueError(f"{run.folder} has no {RESULT_FILE}: finish the training first, with {resume}")
        self.run, self.result = run, run.result.to_dict()
        if not (is_remote(run.photos) or Path(run.photos).is_dir()):
            raise ValueError(
                f"the images of the run are no longer in {run.photos}: the exported files are compared on them; give "
                "photos=FOLDER, where they are now"
            )
        self.data = run.data(on_corrupt=on_corrupt)
        self.val = self.data.dataset("val").sample(_COMPARED)
        self.labels = torch.tensor(self.val.labels)
        self.classifier = classifier = Classifier.load(run.checkpoint, "cpu", "32-true", run.tta, reject)
        self.classifiers = {REFERENCE: classifier}
        if has_native_bf16("cpu"):  # the default precision of this project on such a CPU
            settings = classifier.model, classifier.temperature, "bf16-mixed", classifier.tta, classifier.rejection
            self.classifiers[f"{REFERENCE} bf16"] = Classifier(*settings)

    def decoded_val_images(self) -> Iterator[Tensor]:
        """Yield the validation images as they are decoded: uint8 (1, 3, H, W), each of its own size."""
        val = self.val
        images = ImageDataset(
            val.root, val.paths, val.labels, val.digests, nn.Identity(), bit_depth=self.data.bit_depth
        )
        return (image for image, _ in self.data.batches(images, batch_size=1))

    def calibration_images(self, count: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield `count` training images, or all if there are fewer, the same ones each time.

        Yields:
            uint8 (1, 3, R, R), where R is the size that images are resized to.
        """
        train, preprocessing = self.data.dataset("train"), self.classifier.model.preprocessing
        resized = eval_transform(replace(preprocessing, image_size=preprocessing.resize))
        depth = self.data.bit_depth
        images = ImageDataset(train.root, train.paths, train.labels, train.digests, resized, bit_depth=depth)
        indices = np.random.default_rng(0).permutation(len(images))[:count].tolist()
        return (image.numpy() for image, _ in self.data.batches(images, indices, batch_size=1))


def write_programs(
    reference: Reference, exporters: Sequence[Exporter], folder: Path, calibration_images: int, reduce_range: bool
) -> None:
    """Write the file of each exporter to `folder`.

    Args:
        reference: The run.
        exporters: The formats, in the order in which they are written.
        folder: The output folder.
        calibration_images: How many training images determine the ranges of a quantized format.
        reduce_range: Whether to quantize weights to 7 bits.
    """
    classifier, facts = reference.classifier, describe_run(reference)
    metadata = {
        "classes": json.dumps(classifier.classes),  # in ASCII: the formats take no bytes that are not UTF-8
        "temperature": repr(classifier.temperature),
        "architecture": reference.run.hparams.architecture,
    }
    rejection = classifier.rejection
    if rejection is not None:
        metadata |= {"reject": repr(rejection.share), "strangeness_threshold": repr(rejection.threshold)}
    strangeness = None if rejection is None else rejection.strangeness

    @cache
    def program() -> ExportedProgram:
        return export_program(
            ExportableClassifier(classifier.model, classifier.temperature, classifier.tta, strangeness)
        )

    def images() -> Iterator[npt.NDArray[np.uint8]]:
        return reference.calibration_images(calibration_images)

    source = ExportSource(classifier, facts, program, metadata, folder, images, reduce_range)
    for exporter in exporters:
        exporter.write(source, folder / exporter.file_name)


def run_all_programs(reference: Reference, programs: Mapping[str, ImageProgram]) -> dict[str, Tensor]:
    """Run the classifiers of this project and the exported programs on the validation images.

    Returns:
        The probabilities (N, C) by version, the reference first.
    """
    classifiers = {name: classifier.outputs for name, classifier in reference.classifiers.items()}
    images = reference.data.batches(reference.val, batch_size=1)
    outputs = collect_probabilities(classifiers, (image for image, _ in images), len(images))
    return outputs | collect_probabilities(programs, reference.decoded_val_images(), len(reference.val))


def measure_programs(
    reference: Reference, programs: Mapping[str, ImageProgram], batch: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure the speed of each version on a batch of the median image size, resizing and cropping included.

    Returns:
        The images per second by version, and the conditions of the measurement.
    """
    height, width = median_size(reference.decoded_val_images())
    images = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    classifiers = {name: classifier.outputs_of_images for name, classifier in reference.classifiers.items()}
    return {
        "photos_per_second": measure_speeds(classifiers | dict(programs), images, rounds, seconds),
        **{"rounds": rounds, "batch": batch, "height": height, "width": width},
        "device": device_name(torch.device("cpu")),
    }


def build_parity_report(
    folder: Path, exporters: Sequence[Exporter], rows: Mapping[str, Any], speeds: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of parity.json.

    Args:
        folder: The output folder.
        exporters: The formats whose files are in it.
        rows: From `compare_outputs`.
        speeds: From `measure_programs`.
    """
    files = {exporter.name: exporter.file_name for exporter in exporters}
    versions = {}
    for name, row in rows.items():
        file = files.get(name)
        size = (folder / file).stat().st_size if file else None
        versions[name] = {"file": file, "bytes": size, **row, "photos_per_second": speeds["photos_per_second"][name]}
    return {"versions": versions} | {name: value for name, value in speeds.items() if name != "photos_per_second"}


def describe_run(reference: Reference) -> dict[str, Any]:
    """Return what model.json says about the run: its classes, its images, its scores, and what trained it."""
    result = reference.result
    counts = {split: reference.data.counts(split).total() for split in ("train", "val", "test")}
    facts = {
        **{name: getattr(reference.run.hparams, name) for name in ("architecture", "classes")},
        **reference.classifier.model.preprocessing.to_dict(),
        "temperature": reference.classifier.temperature,
        "scores": {split: result[split] for split in ("val", "test") if split in result},
        "photos": {split: count for split, count in counts.items() if count},
        "folder": Path(reference.run.photos).name,
        "trained": {name: result[name] for name in ("digest", "seed", "best_epoch", "precision", "versions", "git")},
    }
    if (rejection := reference.classifier.rejection) is not None:
        facts["rejection"] = {"reject": rejection.share, "strangeness_threshold": rejection.threshold}
    return facts


def write_model_files(
    reference: Reference, exporters: Sequence[Exporter], folder: Path, report: Mapping[str, Any]
) -> dict[str, Any]:
    """Write model.json, the model card and the license note; return the content of model.json."""
    files = [exporter.file_name for exporter in exporters]
    facts = describe_run(reference) | {
        "input": "photos: uint8 (B, 3, H, W), RGB, upright, of any size",
        "output": "probabilities: float32 (B, C), calibrated, in the order of classes",
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files},
        "exported": provenance(),
    }
    if "rejection" in facts:
        facts["rejection"]["output"] = (
            "strangeness: float32 (B, 1); an image above strangeness_threshold shows none of the classes"
        )
    packages = dict.fromkeys(package for exporter in exporters for package in exporter.packages)
    facts["exported"]["versions"] |= {package: importlib.metadata.version(package) for package in packages}
    write_json(facts, folder / "model.json")
    atomic_write_text(folder / "LICENSE.txt", render_license_note(reference.run.settings.model.weights))
    descriptions = [exporter.description for exporter in exporters]
    library = read_json(folder / CONFIG_FILE)["library"] if WEIGHTS_FILE in files else None
    card = render_model_card(facts, report, parity_rows(report["versions"]), descriptions, library)
    atomic_write_text(folder / "README.md", card)
    return facts
