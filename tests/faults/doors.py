"""The doors through which a stranger's files come, found in the table of programs; and examples of such files."""

import hashlib
import shutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from torchvision.models import get_model

from flowers.data.corrections import CORRECTION_COLUMNS
from flowers.data.synthetic import generate_dataset
from flowers.deploy.hub_folder import write_hub_folder
from flowers.runs.resume import write_start
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, HYDRA_OVERRIDES_FILE, SPLIT_FILE, TRACKERS_FILE
from flowers.settings.programs import CONFIGURED, settings_type
from flowers.studies.review_page import LABEL_COLUMNS
from tests.faults.confinement import Confinement, run_confined

# What a setting of any program takes: the names of EXHIBITS below that it may be given.
TAKES: dict[str, tuple[str, ...]] = {
    "run": ("run", "hub"),
    "runs": ("run",),
    "multirun": ("multirun", "search"),
    "photos": ("photos",),
    "pool": ("pool",),
    "strangers": ("pool",),
    "root": ("photos",),
    "data.root": ("photos", "shards"),
    "corrections": ("corrections",),
    "data.corrections": ("corrections",),
    "data.split_file": ("split",),
    "labels": ("labels",),
    "model.weights": ("weights",),
}

# Other settings that are a text: what they are. A new one must be put here or into TAKES.
NOT_OF_A_STRANGER: dict[str, str] = {
    **dict.fromkeys(("output", "report", "folder", "run_dir", "sweep.folder"), "where results go"),
    **dict.fromkeys(("model.architecture", "models", "trainer.strategy", "sweep.study", "group"), "a name"),
    "formats": "a name",
    **dict.fromkeys(("logger.mlflow.experiment_name", "logger.wandb.project", "token", "host"), "a name"),
    **dict.fromkeys(("allowed_hosts", "label"), "a name"),
    **dict.fromkeys(("data.s3_endpoint", "logger.mlflow.tracking_uri", "sweep.storage"), "an address of the user"),
    "trainer.max_time": "a duration",
    "data.table": "a table, see tests/unit/data/test_table.py and test_parquet.py",
    **dict.fromkeys(("columns.path", "columns.label", "data.columns.path", "data.columns.label"), "a name"),
    **dict.fromkeys(("data.columns.split", "data.columns.group", "data.group_by"), "a name"),
    **dict.fromkeys(("settings", "sweep.settings", "sweep.options", "recipe.base"), "a command line"),
    **dict.fromkeys(("recipe.best", "recipe.parts"), "a command line"),
    "resume": "repeats a command line: see SECURITY.md",
    "web_runtime": "a program, see tests/unit/deploy/export/test_web_page.py",
}

_NETWORK = ["model.architecture=shufflenet_v2_x0_5", "model.weights=null"]
_PIXELS = ["data.image_size=32", "data.resize=32", "data.num_workers=0"]
_TRAINING = ["data.batch_size=16", "trainer=cpu", "trainer.precision=32-true", "head.epochs=1", "finetune.epochs=0"]
_SMALL = ["data=folder", *_PIXELS, *_NETWORK]
_EXACT = ["accelerator=cpu", "precision=32-true"]

# What a program needs beside the setting that is tried: {NAME} is an exhibit, {out} a new folder. A program without an
# entry is called with the setting alone.
NEEDS: dict[str, dict[str, list[str]]] = {
    "train": {
        "*": [*_SMALL, *_TRAINING, "data.root={photos}", "hydra.run.dir={out}/run"],
        "data.root shards": ["data=shards", *_PIXELS, *_NETWORK, *_TRAINING, "hydra.run.dir={out}/run"],
        "model.weights": [*_SMALL[:-1], *_TRAINING, "data.root={photos}", "hydra.run.dir={out}/run"],
    },
    "evaluate": {
        "*": ["run={run}", *_EXACT, "report={out}"],
        "run": [*_EXACT, "output={out}/scores.json"],
    },
    "audit": {
        "*": ["folds=2", "output={out}/audit", *_EXACT],
        "photos": [*_NETWORK, "image_size=32", "folds=2", "output={out}/audit", *_EXACT],
        "model.weights": ["photos={photos}", _NETWORK[0], "image_size=32", "folds=2", "output={out}/audit", *_EXACT],
        "corrections": ["photos={photos}", *_NETWORK, "image_size=32", "folds=2", "output={out}/audit", *_EXACT],
    },
    "compare": {"*": ["output={out}/figures.json"], "corrections": ["runs=[{run},{multirun}/1]"]},
    "predict": {
        "*": ["run={run}", *_EXACT, "output={out}/predictions.csv", "num_workers=0"],
        "run": ["photos={few}", *_EXACT, "output={out}/predictions.csv", "num_workers=0"],
        "root": ["run={run}", "photos={few}", *_EXACT, "output={out}/predictions.csv", "num_workers=0"],
    },
    "explain": {
        "*": ["run={run}", *_EXACT, "output={out}/maps"],
        "run": ["photos={few}", *_EXACT, "output={out}/maps"],
    },
    "export": {"*": ["run={run}", "output={out}/hub", "formats=[hub]", "rounds=1", "seconds=0.001", "batch=1"]},
    "app": {"*": ["port=0", *_EXACT]},
    "soup": {"*": ["output={out}/soup", *_EXACT], "root": ["multirun={multirun}", "output={out}/soup", *_EXACT]},
    "pack": {"*": ["photos={photos}", "output={out}/shards", "workers=1", "shard_mb=0.05"]},
    "probe": {
        "*": [*_SMALL[:-2], "data.root={photos}", "models=['shufflenet_v2_x0_5:null']", "folds=2", *_EXACT],
        "data.root shards": ["data=shards", *_PIXELS, "models=['shufflenet_v2_x0_5:null']", "folds=2", *_EXACT],
    },
    "learning_curve": {
        "*": [*_SMALL, "data.root={photos}", "fractions=[0.3,0.6,1.0]", "seeds=[0,1]", "output={out}/curve", *_EXACT],
        "run": ["fractions=[0.3,0.6,1.0]", "seeds=[0,1]", "output={out}/curve", *_EXACT],
        "root": ["run={run}", "fractions=[0.3,0.6,1.0]", "seeds=[0,1]", "output={out}/curve", *_EXACT],
        "data.root shards": ["data=shards", *_PIXELS, *_NETWORK, "fractions=[0.3,0.6,1.0]", "seeds=[0,1]", *_EXACT],
        "model.weights": [*_SMALL[:-1], "data.root={photos}", "fractions=[0.3,0.6,1.0]", "seeds=[0,1]", *_EXACT],
    },
    "suggest": {
        "*": ["run={run}", "pool={few}", "count=2", "output={out}/next.csv", *_EXACT],
        "labels": ["output={out}/labeled"],
    },
}

# Doors that refuse such a folder as it is, in one line.
REFUSED = {
    *((program, "hub") for program in ("evaluate", "audit", "export", "learning_curve", "suggest")),
    ("compare", "search"),
}

# What a program may write in a run folder that it is given, by the beginnings of the names.
WRITES = {"evaluate": ("report", "mistakes", "rejection.safetensors", "trackers.json")}


class Door(NamedTuple):
    """A setting of a program, and what it is given."""

    program: str
    setting: str
    exhibit: str

    def __str__(self) -> str:
        return f"{self.program}-{self.setting}-{self.exhibit}"

    @property
    def is_refused(self) -> bool:
        """Whether the program refuses the exhibit as it is."""
        return (self.program, self.exhibit) in REFUSED

    def arguments(self, exhibits: Path, given: Path, out: Path) -> list[str]:
        """Return the overrides of the program with `given` at the setting."""
        needs = NEEDS.get(self.program, {})
        needed = needs.get(f"{self.setting} {self.exhibit}", needs.get(self.setting, needs.get("*", [])))
        names = {path.name: str(path) for path in exhibits.iterdir()} | {"out": str(out)}
        value = f"[{given},{exhibits}/multirun/1]" if self.setting == "runs" else str(given)
        others = [line.format(**names) for line in needed if not line.startswith(f"{self.setting}=")]
        return [*others, f"{self.setting}={value}"]


def text_settings(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the settings of a program that may be a text of any kind, also those inside of groups."""
    for name, field in schema.model_fields.items():
        yield from _text_settings(field.annotation, f"{prefix}{name}")


def _text_settings(annotation: Any, name: str) -> Iterator[str]:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is str:
        yield name
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from text_settings(annotation, f"{name}.")
    elif origin is typing.Annotated:
        if not any("pattern" in str(part) for part in parts[1:]):
            yield from _text_settings(parts[0], name)
    elif origin in (typing.Union, types.UnionType, list, dict):
        for part in parts[1:] if origin is dict else parts:
            yield from _text_settings(part, name)


def installed_programs() -> dict[str, type[BaseModel]]:
    """Return the settings of the programs of the project, which the table of programs names."""
    return {name: settings_type(name) for name in CONFIGURED}


def doors() -> list[Door]:
    """Return all doors of all programs."""
    found = []
    for program, schema in installed_programs().items():
        for setting in dict.fromkeys(text_settings(schema)):
            found += [Door(program, setting, exhibit) for exhibit in TAKES.get(setting, ())]
    return found


# The groups of files of each exhibit (`group_of`); a test compares them with the files.
_RUN = ("checkpoint", "safetensors", "json", "yaml", "csv", "photo", "other")
EXHIBITS: dict[str, tuple[str, ...]] = {
    "run": _RUN,
    "hub": ("safetensors", "json", "other"),
    "multirun": _RUN,
    "search": _RUN,
    "shards": ("json", "csv", "npy", "tar"),
    "photos": ("photo", "json"),
    "pool": ("photo",),
    **dict.fromkeys(("corrections", "split", "labels"), ("csv",)),
    "weights": ("checkpoint",),
}


def cell_names() -> dict[str, tuple[Door, str]]:
    """Return each door and each group of files that comes through it, by the name of their cells."""
    return {f"{door}-{group}": (door, group) for door in doors() for group in EXHIBITS[door.exhibit]}


def make_exhibits(folder: Path) -> None:
    """Make a folder with everything that a stranger may give, each made by the program that makes it for a user."""

    def make(name: str, *arguments: str) -> None:
        work = folder.with_name(f"{folder.name}-made")
        ended = run_confined(Confinement(name, arguments, work, folder / "nothing", (folder,), cpu_seconds=600))
        assert (ended.status, ended.findings) == (0, []), f"{name} {' '.join(arguments)}: {ended}"

    _make_photos(folder)
    recipe = [*_SMALL, *_TRAINING, f"data.root={folder}/photos", f"data.corrections={folder}/corrections.csv"]
    recipe += ["data.test_fraction=0.1", "reject=0.2", "logger=[tensorboard,csv]", "features.cache=false"]
    recipe += ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"]  # last.ckpt stays small
    runs = [folder / "multirun" / name for name in "01"]
    make("train", "-m", "optimizer.lr=0.01,0.02", *recipe, "finetune.epochs=1", f"hydra.sweep.dir={runs[0].parent}")
    make("learning_curve", f"run={runs[0]}", "fractions=[0.3,0.6,1.0]", "seeds=[0,1]", *_EXACT)
    make("sweep", "sweep.trials=2", "sweep/sampler=random", f"sweep.folder={folder}/search", *recipe, "seed=0,1")
    for run in runs:
        make("evaluate", f"run={run}", *_EXACT)
        write_start(run, ["seed=1"], is_resumed=True)
        (run / TRACKERS_FILE).write_text('{"mlflow": "0123456789abcdef0123456789abcdef", "wandb": "a1b2c3d4"}\n')
    shutil.copytree(runs[0], folder / "run")
    shutil.copy(folder / "run" / SPLIT_FILE, folder / "split.csv")
    quick = ["rounds=1", "seconds=0.001", "batch=1"]
    make("export", f"run={folder}/run", f"output={folder}/hub", "formats=[hub]", *quick)
    make("pack", f"photos={folder}/photos", f"output={folder}/shards", "workers=1", "shard_mb=0.05")


def collect_exhibits(folder: Path, run: Path, shards: Path) -> None:
    """Make such a folder of a run and shards that are there; it has no search.

    Args:
        folder: The folder, which is made.
        run: A run folder, of the 60 photos of `generate_dataset` with 48 pixels.
        shards: The shards.
    """
    _make_photos(folder)
    shutil.copytree(shards, folder / "shards")
    for name in ("run", "multirun/0", "multirun/1"):
        shutil.copytree(run, folder / name)
        (folder / name / HYDRA_OVERRIDES_FILE).parent.mkdir()
        (folder / name / HYDRA_OVERRIDES_FILE).write_text(f"- seed={name[-1]}\n")
    shutil.copy(run / SPLIT_FILE, folder / "split.csv")
    (folder / "hub").mkdir()
    model = Run(run / BEST_CHECKPOINT).network()
    write_hub_folder(folder / "hub", model.eval(), {"temperature": 1.0, "tta": "none", "split_digest": ""}, None)


def _make_photos(folder: Path) -> None:
    """Make photos with labels, others without, and the tables about them that a person saves in a page."""
    folder.mkdir()
    generate_dataset(folder / "photos", number=60, size=48)
    torch.save(get_model("shufflenet_v2_x0_5", weights=None).state_dict(), folder / "weights.pth")
    for name, count in (("few", 3), ("pool", 12)):
        (folder / name).mkdir()
        for number in range(count):
            noise = np.random.default_rng([count, number]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            photo = Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)
            photo.save(folder / name / f"{number}.jpg")
    first, *_, last = sorted((folder / "photos").glob("*/*.jpg"))
    digest, label = hashlib.sha256(first.read_bytes()).hexdigest(), first.parent.name
    correction = [f"{label}/{first.name}", label, "relabel", last.parent.name, digest]
    (folder / "corrections.csv").write_text(f"{','.join(CORRECTION_COLUMNS)}\n{','.join(correction)}\n")
    (folder / "labels.csv").write_text(f"{','.join(LABEL_COLUMNS)}\n{first},{label},{digest}\n")


def exhibit_path(folder: Path, name: str) -> Path:
    """Return the file or folder of an exhibit."""
    return next(folder / each for each in (name, f"{name}.csv", f"{name}.pth") if (folder / each).exists())


def files_of(path: Path) -> list[Path]:
    """Return the files of an exhibit, relative to it; of a folder of photos, two of each kind."""
    if path.is_file():
        return [Path()]
    return sorted(each.relative_to(path) for each in path.rglob("*") if each.is_file())
