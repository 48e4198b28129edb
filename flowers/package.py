"""The folder of an exported run: its files, and what is known of them."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flowers import atomic, card, checkpoints, formats, hardware, parity, remote, results, run, transforms
from flowers.classifier import Classifier
from flowers.data import FlowersData, shown
from flowers.formats import Program
from flowers.graph import PhotoGraph
from flowers.photoset import PhotoSet

FILES = {"torch.export": "model.pt2", "ONNX": "model.onnx", "ONNX int8": "model.int8.onnx"}  # of each version
LIMITS = {"torch.export": "limit", "ONNX": "limit", "ONNX int8": "int8_limit"}  # the settings that bound its agreement


class Trained:
    """A run that has ended, its model on the CPU, and its photos.

    Args:
        folder: of the run.
        root: where its photos lie now; None for where they did.
        on_bad_photo: "error" or "skip"; None for what training did.

    Raises ValueError where the run has not ended, or its photos are gone or not those of its split.
    """

    def __init__(self, folder: Path, root: str | None = None, on_bad_photo: str | None = None) -> None:
        best = folder / checkpoints.BEST
        self.hparams = checkpoints.read(best)["hyper_parameters"]
        if not (folder / results.RESULT).is_file():
            raise ValueError(f"{folder} has no {results.RESULT}: train the run to its end first (resume={folder})")
        self.result = results.load(folder / results.RESULT)
        settings = self.hparams["config"]["data"]
        self.root = str(root or settings["root"])
        if not (remote.is_remote(self.root) or Path(self.root).is_dir()):
            raise ValueError(
                f"the photos of {folder} are no longer in {self.root}: wanted there, to compare the exported files on "
                "(photos=FOLDER says where they lie now)"
            )
        seen = shown(settings) | ({"on_bad_photo": on_bad_photo} if on_bad_photo else {})
        seen |= {"packed": False} if root else {}
        split_file = run.split_of(best, self.hparams["split_digest"])
        self.data = FlowersData(self.root, split_file=split_file, **seen)
        self.val = self.data.dataset("val")
        self.labels = torch.tensor(self.val.labels)
        self.classifier = Classifier.load(folder, accelerator="cpu", precision="32-true")
        self.classifiers = {parity.REFERENCE: self.classifier}
        if hardware.has_bf16("cpu"):  # what this project itself classifies with there
            model, temperature = self.classifier.model, self.classifier.temperature
            self.classifiers[f"{parity.REFERENCE} bf16"] = Classifier(model, temperature, "bf16-mixed")

    def raw(self) -> Iterator[Tensor]:
        """The validation photos as they are decoded: uint8 (1, 3, H, W), each of its own size."""
        photos = PhotoSet(self.val.root, self.val.paths, self.val.labels, self.val.digests, nn.Identity())
        return (photo for photo, _ in self.data.batches(photos, batch_size=1))

    def calibration(self, count: int) -> Iterator[npt.NDArray[np.uint8]]:
        """So many photos of train, or all, drawn the same each time: uint8 (1, 3, R, R), R being what is resized to."""
        train, side = self.data.dataset("train"), int(self.hparams["resize"])
        photos = PhotoSet(train.root, train.paths, train.labels, train.digests, transforms.centred(side, side))
        drawn = np.random.default_rng(0).permutation(len(photos))[:count].tolist()
        return (photo.numpy() for photo, _ in self.data.batches(photos, drawn, batch_size=1))


def write(trained: Trained, folder: Path, calibration: int, reduce_range: bool) -> dict[str, str]:
    """Writes each version, the one in 8 bits where `calibration` is not 0; returns their files' names."""
    classifier = trained.classifier
    notes = {
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "temperature": repr(classifier.temperature),
        "architecture": trained.hparams["architecture"],
    }
    program = formats.traced(PhotoGraph(classifier.model, classifier.temperature))
    formats.write_torch(program, folder / FILES["torch.export"], notes)
    formats.write_onnx(program, folder / FILES["ONNX"], notes)
    if calibration:
        photos = trained.calibration(calibration)
        formats.write_int8(folder / FILES["ONNX"], folder / FILES["ONNX int8"], photos, reduce_range, notes)
    return {name: file for name, file in FILES.items() if (folder / file).is_file()}


def read(folder: Path, files: Mapping[str, str]) -> dict[str, Program]:
    """Each version as a function of photos as they are decoded."""
    return {
        name: formats.read_torch(folder / file) if file.endswith(".pt2") else formats.read_onnx(folder / file)
        for name, file in files.items()
    }


def answers(trained: Trained, programs: Mapping[str, Program]) -> dict[str, Tensor]:
    """The probabilities (N, C) of the validation photos by the run's own classifiers and by each of `programs`."""
    own = {name: classifier.probabilities for name, classifier in trained.classifiers.items()}
    photos = trained.data.batches(trained.val, batch_size=1)
    said = parity.said(own, (photo for photo, _ in photos), len(photos))
    return said | parity.said(programs, trained.raw(), len(trained.val))


def measured(
    trained: Trained, programs: Mapping[str, Program], batch: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """How fast each version is, given so many photos of the usual size at once, and what that was measured with."""
    height, width = parity.common_size(trained.raw())
    photos = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    own = {name: _whole(classifier) for name, classifier in trained.classifiers.items()}
    return {
        "photos_per_second": parity.speeds(own | dict(programs), photos, rounds, seconds),
        **{"rounds": rounds, "batch": batch, "height": height, "width": width},
        "device": hardware.name(torch.device("cpu")),
    }


def report(
    folder: Path, files: Mapping[str, str], rows: Mapping[str, Any], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What parity.json holds."""
    versions = {}
    for name, row in rows.items():
        file = files.get(name)
        size = (folder / file).stat().st_size if file else None
        versions[name] = {"file": file, "bytes": size, **row, "photos_per_second": measured["photos_per_second"][name]}
    return {"versions": versions} | {name: value for name, value in measured.items() if name != "photos_per_second"}


def describe(trained: Trained, folder: Path, files: Mapping[str, str], report: Mapping[str, Any]) -> None:
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
        "exported": run.provenance(),
    }
    facts["exported"]["versions"] |= {name: importlib.metadata.version(name) for name in formats.NEEDED}
    results.save(facts, folder / "model.json")
    atomic.write_text(folder / "LICENCE.txt", card.licence(trained.hparams["config"]["model"]["weights"]))
    atomic.write_text(folder / "README.md", card.written(facts, report, parity.cells(report["versions"])))


def _whole(classifier: Classifier) -> Program:
    """Of photos as they are decoded, resizing and cropping included."""

    def program(photos: Tensor) -> Tensor:
        return classifier.probabilities(torch.as_tensor(classifier.centre(photos)))

    return program
