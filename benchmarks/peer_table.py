"""A table of peers: other libraries fine-tune the same network on the same images, each by its documented defaults."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers.job import Job
from benchmarks.settings import Speed
from flowers.data.datamodule import ImageDataModule
from flowers.data.splits import SPLITS, save_split
from flowers.evaluation.metrics import score
from flowers.evaluation.statistics import holm, mcnemar
from flowers.evaluation.tables import format_interval, plain
from flowers.runs.predictions import Predictions, load_run_predictions
from flowers.runs.run_folder import provenance
from flowers.runtime.files import write_json
from flowers.runtime.hardware import device_name, resolve_device, resolve_trainer_config
from flowers.runtime.logging import configure_logging, progress_bar
from flowers.runtime.text import one_line
from flowers.settings.config import build_parts, load_config
from flowers.settings.schema.training import Folder

# The script of each peer in the folder `peers`. The package never imports them: each runs in a process of its own.
SCRIPTS = {
    "fastai": "fastai_fine_tune",
    "torchvision": "torchvision_tutorial",
    "timm": "timm_train",
    "ultralytics": "ultralytics_train",
    "keras": "keras_fit",
}
_OURS = "flowers"
_TRIAL_EPOCHS = (1, 3)  # what a time budget is divided by


@dataclass
class Entry:
    """A row of the table: a library with a number of epochs or a time budget.

    Attributes:
        name: "flowers" or a peer.
        epochs: Epochs to train.
        budget: Seconds that the process may take; None for a fixed number of epochs.
        seconds: From start to exit of the process, for each round.
        peak_bytes: Peak memory of its largest process.
        predictions: By split, of the last round.
        version: The name and version of the peer.
        recipe: What it did, in one line.
        problem: Why there are no figures; empty if there are.
        tta: The same with the test-time augmentation of the peer, if it has one.
    """

    name: str
    epochs: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    predictions: dict[str, Predictions] = field(default_factory=dict)
    version: str = ""
    recipe: str = ""
    problem: str = ""
    tta: "Entry | None" = None
    budget: float | None = None

    @property
    def effort(self) -> float:
        """The budget or the epochs: what a row has in common with those that it is compared with."""
        return self.budget or self.epochs


def run_peers(settings: Speed) -> dict[str, Any]:
    """Train flowers and each of `settings.peers` on the same images, in turn, and print a table.

    Args:
        settings: Composed from benchmarks/conf/speed.yaml.

    Returns:
        The figures, as `settings.output` holds them.

    Raises:
        ValueError: A setting is wrong, or there are no images.
    """
    configure_logging()  # Lightning is imported by now
    if settings.peer_python and shutil.which(settings.peer_python) is None:
        raise ValueError(
            f"peer_python={settings.peer_python}: no such program: expected a Python that has the peers installed"
        )
    data = ImageDataModule.from_settings(**build_parts(settings.data), seed=settings.seed)
    if data.source.is_sequential:
        raise ValueError("data=shards: peers read each image from its own file; give data=folder")
    data.setup("fit")
    names = (_OURS, *settings.peers)
    if settings.peer_seconds:
        entries = [Entry(name, 0, budget=settings.peer_seconds) for name in names]
    else:
        entries = [Entry(name, epochs) for epochs in settings.peer_epochs for name in names]
    with tempfile.TemporaryDirectory(prefix="flowers-peers-") as folder:
        _copy_scripts(Path(folder))
        split_file = Path(folder, "split.csv")
        save_split(data.records, split_file)

        def train(entry: Entry) -> None:
            own = Path(tempfile.mkdtemp(prefix=f"{entry.name}-{entry.epochs}-", dir=folder))
            if entry.name == _OURS:
                _run_flowers(entry, settings, split_file, own)
            else:
                _run_peer(entry, settings, data, own)

        for entry in entries:
            if entry.budget:
                fit_to_budget(entry, train)
        for _ in progress_bar(range(settings.rounds), "Rounds"):
            for entry in entries:
                if not entry.problem:
                    train(entry)
    trainer = resolve_trainer_config(settings.trainer.to_dict())
    report = {
        "rows": peer_rows(entries),
        "images": {split: data.counts(split).total() for split in SPLITS},
        "rounds": settings.rounds,
        "image_size": settings.data.image_size,
        "device": device_name(resolve_device(trainer["accelerator"])),
        **provenance(),
    }
    _print(report)
    if settings.output:
        write_json(report, settings.output)
    return report


def fit_to_budget(entry: Entry, train: Callable[[Entry], None]) -> None:
    """Set the epochs of an entry to the most that fit its time budget.

    Runs of 1 and 3 epochs tell how many may fit. Runs with that many, and then with fewer, follow until one fits.

    Args:
        entry: It gets the epochs, or the problem of a run that failed.
        train: Trains an entry for its epochs.
    """

    def seconds_of(epochs: int) -> float:
        trial = Entry(entry.name, epochs)
        train(trial)
        entry.problem = trial.problem
        return trial.seconds[0] if trial.seconds else math.inf

    budget = entry.budget or 0.0
    trials: dict[int, float] = {}
    for epochs in _TRIAL_EPOCHS:
        trials[epochs] = seconds_of(epochs)
        if entry.problem:
            return
    entry.epochs = epochs_within(budget, trials)
    while entry.epochs not in trials:  # epochs may differ in cost: frozen ones, or those with smaller images
        seconds = trials[entry.epochs] = seconds_of(entry.epochs)
        if entry.problem:
            return
        if seconds > budget:
            fewer = epochs_within(budget, {1: trials[1], entry.epochs: seconds}) if entry.epochs > 1 else 1
            entry.epochs = max(1, min(entry.epochs - 1, fewer))


def epochs_within(budget: float, trials: Mapping[int, float]) -> int:
    """Return how many epochs fit a budget in seconds, at least 1, by the line through two runs.

    Args:
        budget: The seconds.
        trials: The seconds of two runs by their epochs.
    """
    (few, short), (many, long) = sorted(trials.items())
    epoch = (long - short) / (many - few)
    if epoch <= 0:  # noise: all the time counts as training
        return max(1, int(budget * many / long))
    return few + int((budget - short) / epoch) if budget >= short else 1


def _copy_scripts(folder: Path) -> None:
    """Copy the scripts where an interpreter finds them, and nothing else of this one's packages."""
    package = folder / "scripts" / "benchmarks"
    shutil.copytree(Path(__file__).with_name("peers"), package / "peers", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()


def _folder(settings: Speed) -> Folder:
    if not isinstance(settings.data, Folder):
        raise ValueError("data=shards: the peers read each image from its own file: give data=folder")
    return settings.data


def _run_flowers(entry: Entry, settings: Speed, split_file: Path, folder: Path) -> None:
    """Train with `flowers.train` and an empty cache, and read the predictions of the run."""
    run = folder / "run"
    overrides = [
        *([f"experiment={settings.peer_experiment}"] if settings.peer_experiment else []),
        "data=folder",
        f"data.root={Path(settings.data.root).resolve()}",
        f"data.on_corrupt={_folder(settings).on_corrupt}",
        f"data.split_file={split_file}",
        f"model.architecture={settings.model.architecture}",
        f"model.weights={settings.model.weights if settings.model.weights is not None else 'null'}",
        f"finetune.epochs={entry.epochs}",
        f"seed={settings.seed}",
        *settings.peer_settings,
        f"hydra.run.dir={run}",
    ]
    sizes = load_config([*overrides[:-1], f"run_dir={run}"]).finetune.image_sizes or []
    if len(sizes) > entry.epochs:  # there is at most one size for each epoch
        overrides.append(f"finetune.image_sizes=[{','.join(map(str, sizes[-entry.epochs :]))}]")
    # The peers keep nothing from one run to the next, so features that an earlier run cached do not count either.
    command = [sys.executable, "-m", "flowers.train", *overrides]
    code, seconds, peak, output = run_measured(command, folder, {"FLOWERS_CACHE": str(folder / "cache")})
    if code:
        entry.problem = output[-1] if output else f"exit code {code}"
        return
    entry.seconds.append(seconds)
    entry.peak_bytes = max(entry.peak_bytes, peak)
    for split in ("val", "test"):
        if (run / "predictions" / f"{split}.csv").is_file():
            entry.predictions[split] = load_run_predictions(run, split)
    entry.version = f"flowers {provenance()['git'] or ''}".strip()
    used = OmegaConf.load(run / "config.yaml")
    recipe = f"experiment={settings.peer_experiment}" if settings.peer_experiment else "the defaults"
    entry.recipe = f"{recipe}, images of {used.finetune.image_sizes or used.data.image_size} px"


def _run_peer(entry: Entry, settings: Speed, data: ImageDataModule, folder: Path) -> None:
    """Run the script of a peer, and read its result."""
    root = Path(settings.data.root).resolve()
    images = {
        split: [
            (str(root / record.path), data.class_numbers[record.label])
            for record in data.records
            if record.split == split
        ]
        for split in SPLITS
    }
    weights = str(Path(settings.model.weights).resolve()) if settings.model.weights else None
    job = Job(
        images=images,
        classes=data.classes,
        architecture=settings.model.architecture,
        weights=weights,
        image_size=settings.data.image_size,
        epochs=entry.epochs,
        seed=settings.seed,
        folder=str(folder),
        result=str(folder / "result.json"),
    )
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    module = f"benchmarks.peers.{SCRIPTS[entry.name]}"
    command = [settings.peer_python or sys.executable, "-m", module, str(folder / "job.json")]
    code, seconds, peak, output = run_measured(command, folder, {"PYTHONPATH": str(folder.parent / "scripts")})
    if code or not Path(job.result).is_file():
        entry.problem = output[-1] if output else f"exit code {code}"
        return
    result = json.loads(Path(job.result).read_text(encoding="utf-8"))
    _record(entry, result, result["logits"], seconds - result["tta_seconds"], peak, data)
    if result["tta_logits"]:
        entry.tta = entry.tta or Entry(f"{entry.name}, TTA", entry.epochs, budget=entry.budget)
        _record(entry.tta, result, result["tta_logits"], seconds, peak, data)


def _record(
    entry: Entry,
    result: Mapping[str, Any],
    logits: Mapping[str, list[list[float]]],
    seconds: float,
    peak: int,
    data: ImageDataModule,
) -> None:
    entry.seconds.append(seconds)
    entry.peak_bytes = max(entry.peak_bytes, peak)
    entry.version, entry.recipe = result["version"], result["recipe"]
    for split, rows in logits.items():
        records = [record for record in data.records if record.split == split]
        labels = torch.tensor([data.class_numbers[record.label] for record in records])
        tensor = torch.tensor(rows, dtype=torch.float64)
        entry.predictions[split] = Predictions([record.path for record in records], labels, tensor, data.classes)


def run_measured(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, float, int, list[str]]:
    """Run a command.

    Args:
        command: The program and its arguments.
        folder: The folder for what it prints.
        environment: Environment variables in addition to those of this process.

    Returns:
        Its exit code, the seconds from start to exit, the peak memory in bytes of its largest process, and the lines
        that it printed.
    """
    log, result = folder / "output.log", folder / "process.json"
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("measured_process.py")), str(result)]
    with log.open("w", encoding="utf-8") as output:
        own = os.environ | dict(environment or {})
        subprocess.run([*launcher, *command], stdout=output, stderr=subprocess.STDOUT, env=own, check=False)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not result.is_file():  # the program does not start, or the launcher was killed
        return 1, 0.0, 0, lines
    figures = json.loads(result.read_text(encoding="utf-8"))
    return figures["code"], figures["seconds"], figures["peak_bytes"], lines


def peer_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return a row for each entry, ready for JSON.

    `p` is McNemar's of flowers with as many epochs, or the same budget, against the peer, on the test images or,
    without them, on those of val, with Holm's correction for all peers. `difference` is the accuracy of flowers minus
    that of the peer there.
    """
    ours = {entry.effort: entry for entry in entries if entry.name == _OURS and not entry.problem}
    rows: list[dict[str, Any]] = []
    for entry in (each for one in entries for each in (one, None if one.problem else one.tta) if each):
        row: dict[str, Any] = {"library": entry.name, "epochs": entry.epochs, "problem": entry.problem}
        row |= {"budget": entry.budget} if entry.budget else {}
        if not entry.problem:
            row |= {"seconds": statistics.median(entry.seconds), "all_seconds": entry.seconds}
            row |= {"peak_bytes": entry.peak_bytes, "version": entry.version, "recipe": entry.recipe}
            row |= {split: score(predictions) for split, predictions in entry.predictions.items()}
            if entry.name != _OURS and entry.effort in ours:
                split = "test" if "test" in entry.predictions else "val"
                row |= _against(entry.predictions[split], ours[entry.effort].predictions[split])
        rows.append(row)
    compared = [row for row in rows if "p" in row]
    for row, p in zip(compared, holm([row["p"] for row in compared]), strict=True):
        row["p"] = p
    return rows


def _against(peer: Predictions, ours: Predictions) -> dict[str, float]:
    order = {path: index for index, path in enumerate(ours.paths)}
    indices = torch.tensor([order[path] for path in peer.paths])
    sorted_ours = Predictions(peer.paths, ours.labels[indices], ours.logits[indices], ours.classes)
    comparison = mcnemar(peer, sorted_ours)
    return {"difference": comparison["difference"], "p": comparison["p"]}


def _print(report: Mapping[str, Any]) -> None:
    console = Console(highlight=False, markup=False, width=None if Console().is_terminal else 160)
    table = Table(
        "library", "epochs", "seconds", "peak GB", "val", "test", "95 % interval", "lead", "p", box=box.SIMPLE
    )
    for row in report["rows"]:
        if row["problem"]:
            table.add_row(row["library"], str(row["epochs"]), plain(f"failed: {one_line(row['problem'])}"))
            continue
        last = row.get("test", row["val"])
        lead = [f"{row['difference']:+.4f}", f"{row['p']:.3g}"] if "p" in row else []
        table.add_row(
            row["library"],
            str(row["epochs"]),
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 1e9:.1f}",
            f"{row['val']['accuracy']:.4f}",
            f"{row['test']['accuracy']:.4f}" if "test" in row else "",
            format_interval(last["interval"]),
            *lead,
        )
    console.print(table)
    counts = ", ".join(f"{count:,} {split}" for split, count in report["images"].items() if count)
    console.print(
        f"{counts} images; {report['rounds']} round(s) in turn; {report['device']}; "
        f"peers at {report['image_size']} px; seconds from start to exit; "
        "lead and p: flowers against the peer, McNemar with Holm's correction",
        soft_wrap=True,
    )
    recipes = {row["version"]: row["recipe"] for row in report["rows"] if not row["problem"]}
    for version, recipe in recipes.items():
        console.print(f"{version}: {recipe}", soft_wrap=True)
