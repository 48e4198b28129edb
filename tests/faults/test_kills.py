"""kill -9 at random moments: what is run again ends as if it had never been killed, to the bit."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, RESULT_FILE, START_FILE
from flowers.runtime.files import read_json
from flowers.runtime.text import read_csv
from tests.faults.programs import preload, run
from tests.helpers import SMALL

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore:This process")]

Commands = Callable[[Path], tuple[str, list[str]]]  # the program and its arguments, given the folder of the outputs


class Case(NamedTuple):
    """A command to kill.

    Attributes:
        command: The program and its arguments; called again after each kill, so that it can resume.
        outputs: What the command is to leave, comparable.
        kills: How often it is killed.
    """

    command: Commands
    outputs: Callable[[Path], Any]
    kills: int


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def run_outputs(folder: Path) -> Any:
    result = read_json(folder / "run" / RESULT_FILE)
    weights = {
        f"{name} {key}": value.double().numpy().tobytes()
        for name in (BEST_CHECKPOINT, LAST_CHECKPOINT)
        for key, value in read_checkpoint(folder / "run" / name)["state_dict"].items()
    }
    kept = {name: result[name] for name in ("val", "temperature", "best_epoch", "classes", "digest")}
    return kept, weights, files_below(folder / "run" / "predictions"), (folder / "run" / "split.csv").read_bytes()


def search_outputs(folder: Path) -> Any:
    header, *rows = read_csv(folder / "search" / "trials.csv")
    kept = [index for index, name in enumerate(header) if name not in ("seconds", "folder")]
    return [[row[index] for index in kept] for row in (header, *rows)]


def train(data: Path) -> Commands:
    def command(folder: Path) -> tuple[str, list[str]]:
        if (folder / "run" / START_FILE).exists():
            return "train", [f"resume={folder}/run"]
        return "train", [
            *SMALL,
            f"data.root={data}",
            "callbacks.mid_epoch.minutes=0.0001",
            f"hydra.run.dir={folder}/run",
        ]

    return command


def search(data: Path) -> Commands:
    own = ["sweep.trials=4", "finetune.epochs=0", "head.epochs=3", "scheduler=constant,cosine"]
    fixed = [line for line in SMALL if not line.startswith(("finetune.epochs", "head.epochs"))]

    def command(folder: Path) -> tuple[str, list[str]]:
        settings = [] if (folder / "search" / "search.yaml").exists() else [*fixed, *own, f"data.root={data}"]
        return "sweep", [f"sweep.folder={folder}/search", *settings]

    return command


@pytest.fixture(scope="module")
def cases(painted: Path, trained: Path) -> dict[str, Case]:
    preload()
    torch.set_num_threads(1)

    def pack(folder: Path) -> tuple[str, list[str]]:
        return "pack", [f"photos={painted}", f"output={folder}/packed", "workers=1", "shard_mb=0.02"]

    def predict(folder: Path) -> tuple[str, list[str]]:
        return "predict", [f"run={trained}", f"photos={painted}", f"output={folder}/answers.csv", "num_workers=0"]

    def evaluate(folder: Path) -> tuple[str, list[str]]:
        return "evaluate", [f"run={trained}", f"report={folder}/report", f"output={folder}/scores.json"]

    def export(folder: Path) -> tuple[str, list[str]]:
        fast = ["int8=false", "rounds=1", "seconds=0.01", "batch=2"]
        return "export", [f"run={trained}", f"output={folder}/exported", *fast]

    def exported(folder: Path) -> Any:
        return {path.name: path.read_bytes() for path in (folder / "exported").glob("*.onnx")}

    return {
        "export": Case(export, exported, 4),
        "train": Case(train(painted), run_outputs, 14),
        "sweep": Case(search(painted), search_outputs, 8),
        "pack": Case(pack, lambda folder: files_below(folder / "packed"), 6),
        "predict": Case(predict, files_below, 6),
        "evaluate": Case(evaluate, files_below, 6),
    }


@pytest.mark.parametrize("name", ["train", "sweep", "pack", "predict", "evaluate", "export"])
def test_killed_program_ends_as_the_uninterrupted_one(name: str, cases: dict[str, Case], tmp_path: Path):
    case, log = cases[name], tmp_path / "log"
    whole = tmp_path / "whole"
    whole.mkdir()
    done = run(*case.command(whole), log, environment={"FLOWERS_CACHE": str(tmp_path / "cache-whole")})
    assert done.status == 0, done.output
    expected = case.outputs(whole)
    moments = random.Random(f"{name} 1")
    for number in range(case.kills):
        folder, cache = tmp_path / f"killed-{number}", tmp_path / f"cache-{number}"
        folder.mkdir()
        environment = {"FLOWERS_CACHE": str(cache)}
        moment = moments.uniform(0.1, 1.0) * done.seconds
        run(*case.command(folder), log, kill_after=moment, environment=environment)
        again = run(*case.command(folder), log, environment=environment)
        assert again.status == 0, f"killed after {moment:.2f} s: {again.output}"
        assert case.outputs(folder) == expected, f"killed after {moment:.2f} s"
        left = [path for root in (folder, cache) for path in root.rglob("*.part")]
        assert not left, f"killed after {moment:.2f} s"
        shutil.rmtree(folder)
        shutil.rmtree(cache, ignore_errors=True)
