"""Damaged run folders and caches: what was lost is computed again, or one line says what is wrong."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.run_folder import BEST_CHECKPOINT, CONFIG_FILE, LAST_CHECKPOINT, SPLIT_FILE, START_FILE
from tests.faults.programs import Ended, preload, run
from tests.helpers import SMALL

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore:This process")]


def flip(path: Path) -> None:
    """Invert bytes all over the file."""
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 7, len(content), max(1, len(content) // 50)):
        content[position] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def swap(path: Path) -> None:
    """Put a folder in place of a file, or a file in place of a folder."""
    is_folder = path.is_dir()
    delete(path)
    path.touch() if is_folder else path.mkdir()


Damage = Callable[[Path], None]

IN_THE_RUN: list[tuple[str, Damage]] = [
    (LAST_CHECKPOINT, flip),
    (LAST_CHECKPOINT, cut),
    (LAST_CHECKPOINT, empty),
    (LAST_CHECKPOINT, swap),
    (BEST_CHECKPOINT, flip),
    (BEST_CHECKPOINT, cut),
    (BEST_CHECKPOINT, delete),
    (BEST_CHECKPOINT, swap),
    (SPLIT_FILE, flip),
    (SPLIT_FILE, cut),
    (SPLIT_FILE, delete),
    (SPLIT_FILE, swap),
    (START_FILE, flip),
    (START_FILE, empty),
    (START_FILE, swap),
    (CONFIG_FILE, flip),
    (CONFIG_FILE, delete),
    ("tensorboard", delete),
    ("tensorboard", swap),
    ("checkpoints", swap),
    (".lock", swap),
]
IN_THE_CACHE: list[tuple[str, Damage]] = [
    ("features/*/*.safetensors", flip),
    ("features/*/*.safetensors", cut),
    ("features/*/*.safetensors", swap),
    ("features/*", swap),
    ("features", swap),
    ("verdicts/*", flip),
    ("verdicts/*", empty),
    ("verdicts/*", swap),
    ("verdicts", swap),
    (".", swap),
]


@pytest.fixture(scope="module")
def stopped(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `run`, stopped inside its fine-tune stage, the `cache` that it used, and `whole`, not stopped."""
    preload()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    recipe = [*SMALL, f"data.root={painted}", "+callbacks.kill._target_=tests.helpers.KillAt"]
    for name, environment in (("run", {"KILL_AT": "2.1", "KILL_SIGNAL": "15"}), ("whole", {})):
        own = {"FLOWERS_CACHE": str(folder / "cache"), **environment}
        done = run("train", [*recipe, f"hydra.run.dir={folder}/{name}"], folder / "log", environment=own)
        assert done.status == (130 if environment else 0), done.output
    yield folder
    shutil.rmtree(folder)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(run_dir / LAST_CHECKPOINT)["state_dict"])


def check(done: Ended, run_dir: Path, whole: Path) -> None:
    """The run ended as the whole one, or with one line and no traceback."""
    assert "Traceback" not in done.output
    if done.status:
        errors = [line for line in done.output.splitlines() if line.startswith("error: ")]
        assert (done.status, len(errors)) == (1, 1), done.output
        assert done.output.splitlines()[-1] == errors[0], done.output
    else:
        found, expected = weights(run_dir), weights(whole)
        assert all(torch.equal(found[key], expected[key]) for key in expected), done.output


@pytest.mark.parametrize(("name", "damage"), IN_THE_RUN)
def test_damaged_run_folder_is_resumed_or_named(name: str, damage: Damage, stopped: Path, tmp_path: Path):
    shutil.copytree(stopped / "run", tmp_path / "run")
    damage(tmp_path / "run" / name)
    environment = {"FLOWERS_CACHE": str(stopped / "cache")}
    done = run("train", [f"resume={tmp_path}/run"], tmp_path / "log", environment=environment)
    check(done, tmp_path / "run", stopped / "whole")


@pytest.mark.parametrize(("name", "damage"), IN_THE_CACHE)
def test_damaged_cache_is_computed_again(name: str, damage: Damage, painted: Path, stopped: Path, tmp_path: Path):
    shutil.copytree(stopped / "cache", tmp_path / "cache")
    paths = list((tmp_path / "cache").glob(name)) if name != "." else [tmp_path / "cache"]
    assert paths
    for path in paths:
        damage(path)
    recipe = [*SMALL, f"data.root={painted}", "+callbacks.kill._target_=tests.helpers.KillAt"]
    environment = {"FLOWERS_CACHE": str(tmp_path / "cache")}
    done = run("train", [*recipe, f"hydra.run.dir={tmp_path}/run"], tmp_path / "log", environment=environment)
    assert done.status == 0, done.output
    check(done, tmp_path / "run", stopped / "whole")
