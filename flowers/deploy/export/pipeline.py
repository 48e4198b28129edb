"""Export a trained run: write each format, load it again, and compare it with the model."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from flowers.data.datamodule import ImageDataModule, inference_data_args
from flowers.data.dataset import ImageDataset
from flowers.data.remote import is_remote
from flowers.data.transforms import eval_transform
from flowers.deploy.classifier import Classifier
from flowers.deploy.export.formats import (
    REQUIRED_PACKAGES,
    ImageProgram,
    export_program,
    load_onnx,
    load_pt2,
    require_packages,
    write_int8,
    write_onnx,
    write_pt2,
)
from flowers.deploy.export.graph import ExportableClassifier
from flowers.deploy.export.model_card import render_licence_note, render_model_card
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
from flowers.evaluation.evaluator import find_split_file
from flowers.models.classifier import read_checkpoint
from flowers.runtime.files import atomic_directory, atomic_write_text, cache_dir, read_json, write_json
from flowers.runtime.hardware import device_name, has_native_bf16
from flowers.runtime.run_folder import BEST_CHECKPOINT, RESULT_FILE, provenance, require_run_dir


def run_export(cfg: DictConfig) -> dict[str, Any]:
    """Makes the folder `cfg.output` of a run's best checkpoint; returns the parity report that lies in it.

    Raises ValueError, and leaves nothing there, where a version does not say what the run's model says.
    """

    require_packages()
    if cfg.calibration_images < 1 or cfg.batch < 1 or cfg.rounds < 1 or cfg.seconds < 0:
        raise ValueError("wanted calibration_images, batch and rounds of at least 1, and seconds of at least 0")
    folder = Path(cfg.output).resolve()
    if folder.exists():
        raise ValueError(f"output={cfg.output} is there already: give a new folder, or remove that one")
    trained = TrainedRun(require_run_dir(cfg.run), cfg.photos, cfg.on_corrupt)
    limits = {name: (key, cfg[key]) for name, key in AGREEMENT_KEYS.items() if cfg.int8 or key != "int8_min_agreement"}

    folder.parent.mkdir(parents=True, exist_ok=True)
    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / "export.lock"), atomic_directory(folder) as beside:  # two would measure each other
        files = write_programs(trained, beside, cfg.calibration_images if cfg.int8 else 0, cfg.reduce_range)
        programs = load_programs(beside, files)
        answers = run_all_programs(trained, programs)
        rows = compare_outputs(answers, trained.labels)
        check_agreement(rows, limits, len(trained.labels))
        measured = measure_programs(trained, programs, cfg.batch, cfg.rounds, cfg.seconds)
        report = build_parity_report(beside, files, rows, measured) | {"limits": dict(limits.values())}
        write_json(report, beside / "parity.json")
        write_model_files(trained, beside, files, report)
    Console().print(parity_table(report["versions"]))
    Console().print(f"exported to {folder}", soft_wrap=True, highlight=False)
    return report


EXPORT_FILES = {"torch.export": "model.pt2", "ONNX": "model.onnx", "ONNX int8": "model.int8.onnx"}  # of each version


AGREEMENT_KEYS = {
    "torch.export": "min_agreement",
    "ONNX": "min_agreement",
    "ONNX int8": "int8_min_agreement",
}  # the settings that bound its agreement


class TrainedRun:
    """A run that has ended, its model on the CPU, and its photos.

    Args:
        folder: of the run.
        root: where its photos lie now; None for where they did.
        on_corrupt: "error" or "skip"; None for what training did.

    Raises ValueError where the run has not ended, or its photos are gone or not those of its split.
    """

    def __init__(self, folder: Path, root: str | None = None, on_corrupt: str | None = None) -> None:
        best = folder / BEST_CHECKPOINT
        self.hparams = read_checkpoint(best)["hyper_parameters"]
        if not (folder / RESULT_FILE).is_file():
            raise ValueError(f"{folder} has no {RESULT_FILE}: train the run to its end first (resume={folder})")
        self.result = read_json(folder / RESULT_FILE)
        settings = self.hparams["config"]["data"]
        self.root = str(root or settings["root"])
        if not (is_remote(self.root) or Path(self.root).is_dir()):
            raise ValueError(
                f"the photos of {folder} are no longer in {self.root}: wanted there, to compare the exported files on "
                "(photos=FOLDER says where they lie now)"
            )
        seen = inference_data_args(settings) | ({"on_corrupt": on_corrupt} if on_corrupt else {})
        seen |= {"packed": False} if root else {}
        split_file = find_split_file(best, self.hparams["split_digest"])
        self.data = ImageDataModule(self.root, split_file=split_file, **seen)
        self.val = self.data.dataset("val")
        self.labels = torch.tensor(self.val.labels)
        self.classifier = Classifier.load(folder, accelerator="cpu", precision="32-true")
        self.classifiers = {REFERENCE: self.classifier}
        if has_native_bf16("cpu"):  # what this project itself classifies with there
            model, temperature = self.classifier.model, self.classifier.temperature
            self.classifiers[f"{REFERENCE} bf16"] = Classifier(model, temperature, "bf16-mixed")

    def raw(self) -> Iterator[Tensor]:
        """The validation photos as they are decoded: uint8 (1, 3, H, W), each of its own size."""
        photos = ImageDataset(self.val.root, self.val.paths, self.val.labels, self.val.digests, nn.Identity())
        return (photo for photo, _ in self.data.batches(photos, batch_size=1))

    def calibration(self, count: int) -> Iterator[npt.NDArray[np.uint8]]:
        """So many photos of train, or all, drawn the same each time: uint8 (1, 3, R, R), R being what is resized to."""
        train, side = self.data.dataset("train"), int(self.hparams["resize"])
        photos = ImageDataset(train.root, train.paths, train.labels, train.digests, eval_transform(side, side))
        drawn = np.random.default_rng(0).permutation(len(photos))[:count].tolist()
        return (photo.numpy() for photo, _ in self.data.batches(photos, drawn, batch_size=1))


def write_programs(trained: TrainedRun, folder: Path, calibration: int, reduce_range: bool) -> dict[str, str]:
    """Writes each version, the one in 8 bits where `calibration` is not 0; returns their files' names."""
    classifier = trained.classifier
    notes = {
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "temperature": repr(classifier.temperature),
        "architecture": trained.hparams["architecture"],
    }
    program = export_program(ExportableClassifier(classifier.model, classifier.temperature))
    write_pt2(program, folder / EXPORT_FILES["torch.export"], notes)
    write_onnx(program, folder / EXPORT_FILES["ONNX"], notes)
    if calibration:
        photos = trained.calibration(calibration)
        write_int8(folder / EXPORT_FILES["ONNX"], folder / EXPORT_FILES["ONNX int8"], photos, reduce_range, notes)
    return {name: file for name, file in EXPORT_FILES.items() if (folder / file).is_file()}


def load_programs(folder: Path, files: Mapping[str, str]) -> dict[str, ImageProgram]:
    """Each version as a function of photos as they are decoded."""
    return {
        name: load_pt2(folder / file) if file.endswith(".pt2") else load_onnx(folder / file)
        for name, file in files.items()
    }


def run_all_programs(trained: TrainedRun, programs: Mapping[str, ImageProgram]) -> dict[str, Tensor]:
    """The probabilities (N, C) of the validation photos by the run's own classifiers and by each of `programs`."""
    own = {name: classifier.probabilities for name, classifier in trained.classifiers.items()}
    photos = trained.data.batches(trained.val, batch_size=1)
    said = collect_probabilities(own, (photo for photo, _ in photos), len(photos))
    return said | collect_probabilities(programs, trained.raw(), len(trained.val))


def measure_programs(
    trained: TrainedRun, programs: Mapping[str, ImageProgram], batch: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """How fast each version is, given so many photos of the usual size at once, and what that was measured with."""
    height, width = median_size(trained.raw())
    photos = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    own = {name: _with_transform(classifier) for name, classifier in trained.classifiers.items()}
    return {
        "photos_per_second": measure_speeds(own | dict(programs), photos, rounds, seconds),
        **{"rounds": rounds, "batch": batch, "height": height, "width": width},
        "device": device_name(torch.device("cpu")),
    }


def build_parity_report(
    folder: Path, files: Mapping[str, str], rows: Mapping[str, Any], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What parity.json holds."""
    versions = {}
    for name, row in rows.items():
        file = files.get(name)
        size = (folder / file).stat().st_size if file else None
        versions[name] = {"file": file, "bytes": size, **row, "photos_per_second": measured["photos_per_second"][name]}
    return {"versions": versions} | {name: value for name, value in measured.items() if name != "photos_per_second"}


def _with_transform(classifier: Classifier) -> ImageProgram:
    """Of photos as they are decoded, resizing and cropping included."""

    def program(photos: Tensor) -> Tensor:
        return classifier.probabilities(torch.as_tensor(classifier.eval_transform(photos)))

    return program


def write_model_files(trained: TrainedRun, folder: Path, files: Mapping[str, str], report: Mapping[str, Any]) -> None:
    """Writes model.json, the model card and the note on licences."""
    result = trained.result
    facts = {
        **{name: trained.hparams[name] for name in ("architecture", "classes", "image_size", "resize", "mean", "std")},
        "temperature": trained.classifier.temperature,
        "input": "photos: uint8 (B, 3, H, W), RGB, upright, of any size",
        "output": "probabilities: float32 (B, C), calibrated, in the order of classes",
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files.values()},
        "scores": {split: result[split] for split in ("val", "test") if split in result},
        "photos": {
            split: trained.data.counts(split).total()
            for split in ("train", "val", "test")
            if trained.data.counts(split)
        },
        "folder": Path(trained.root).name,
        "trained": {name: result[name] for name in ("digest", "seed", "best_epoch", "precision", "versions", "git")},
        "exported": provenance(),
    }
    facts["exported"]["versions"] |= {name: importlib.metadata.version(name) for name in REQUIRED_PACKAGES}
    write_json(facts, folder / "model.json")
    atomic_write_text(folder / "LICENCE.txt", render_licence_note(trained.hparams["config"]["model"]["weights"]))
    atomic_write_text(folder / "README.md", render_model_card(facts, report, parity_rows(report["versions"])))
