"""Shared by tests of several folders: configurations, programs as subprocesses, what a run wrote."""

import csv
import importlib
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers.data.packing import run_packing
from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.run_folder import LAST_CHECKPOINT
from flowers.runtime.logging import isolated_logging
from flowers.settings.config import CONF, read_settings
from flowers.settings.config_reference import config_folders
from flowers.settings.programs import settings_type

# What a test run adds to any configuration: a small network on small photos, decoded in the test's own process.
SMALL = (
    "data=folder",
    "data.image_size=32",
    "data.resize=32",
    "data.batch_size=16",
    "data.num_workers=0",
    "model=resnet18",
    "model.weights=null",
    "optimizer.lr=0.002",
    "finetune.backbone_lr=0.002",
    "trainer=cpu",
    "trainer.precision=32-true",
    "head.epochs=2",
    "finetune.epochs=2",
)

# For what is true of any network: half a million weights in the blocks of a ResNet, and no pictures for the trackers.
# A training takes a quarter of the time of SMALL. Its network is in timm's own tests, too.
TINY = (*SMALL, "model.architecture=timm/test_resnet", "~callbacks.image_logger")


def configuration(*overrides: str, name: str = "train") -> Any:
    """Settings of a program, composed and typed as those of the command line."""
    folder = ["run_dir=x"] if name == "train" else []
    return read_settings(composed(*folder, *overrides, name=name), settings_type(name))


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """What Hydra composes, before it is checked."""
    return _composed(overrides, name, tuple(config_folders())).copy()


@cache
def _composed(overrides: tuple[str, ...], name: str, folders: tuple[Path, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def program(*arguments: str, name: str = "train", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"flowers.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def program_here(*arguments: str, name: str = "train") -> subprocess.CompletedProcess[str]:
    """What `program` returns, of the same `main` in this process: where another process would only import torch again.

    The command line, the environment, the folder and the log handlers are those of before afterwards.
    """
    main = importlib.import_module(f"flowers.{name}").main
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with ExitStack() as stack:
        for each in (isolated_logging(), patch.dict(os.environ), chdir(Path.cwd())):
            stack.enter_context(each)
        stack.enter_context(patch.object(sys, "argv", [f"flowers.{name}", *arguments]))
        stack.enter_context(redirect_stdout(output))
        stack.enter_context(redirect_stderr(errors))
        logging.getLogger().handlers[:] = []  # those of pytest
        try:
            main()
        except SystemExit as error:  # as Python ends a process
            if isinstance(error.code, str):
                errors.write(f"{error.code}\n")
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def code_blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shown_package(page: Path) -> tuple[str, dict[str, dict[str, str]], dict[str, str]]:
    """What a page tells to write: the name of a package, its entry points by kind, the files that name their path."""
    project = tomllib.loads("".join(code_blocks(page, "toml"))).get("project", {"name": "none"})
    parts = {kind.removeprefix("flowers."): names for kind, names in project.get("entry-points", {}).items()}
    blocks = [block for language in ("python", "yaml") for block in code_blocks(page, language)]
    found = [re.fullmatch(r"# (\S+\.(?:py|yaml))\n(.*)", block, flags=re.DOTALL) for block in blocks]
    return project["name"], parts, {each[1]: each[2] for each in found if each}


def install(site: Path, parts: Mapping[str, Mapping[str, str]], files: Mapping[str, str], name: str = "garden") -> None:
    """Put a package into a folder of sys.path, as pip does: its files, and its entry points by kind and name."""
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for kind, targets in parts.items()
        for line in (f"[flowers.{kind}]", *(f"{each} = {target}" for each, target in targets.items()), "")
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def weights(run: Path, name: str = LAST_CHECKPOINT) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(run / name)["state_dict"])


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    # TensorBoard reads the files by name, in which file 10 of a process comes before file 9 of the same second.
    files = sorted((run / "tensorboard").glob("events.*"), key=lambda file: [*map(int, re.findall(r"\d+", file.name))])
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            shutil.copy(file, Path(folder, f"events.out.tfevents.{number:04}"))
        events = EventAccumulator(folder).Reload()
    timed = "train/photos_per_second"
    tags = [tag for tag in events.Tags()["scalars"] if tag != timed and not tag.startswith("val_best/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def csv_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What csv/metrics.csv holds, in the precision of TensorBoard."""
    found: dict[str, list[tuple[int, float]]] = {}
    with (run / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, []).append((int(row["step"]), float(np.float32(value))))
    return found


def packed(photos: Path, output: Path, *overrides: str) -> dict[str, bytes]:
    """What lies in the folder once the photos are packed."""
    settings = ["workers=1", "shard_mb=0.05", f"photos={photos}", f"output={output}", *overrides]
    run_packing(configuration(*settings, name="pack"))
    return {path.name: path.read_bytes() for path in output.iterdir()}


class KillAt(Callback):
    """`KILL_AT=3.1`: in epoch 3 (from 0), after batch 1; `KILL_AT=3.save`: while epoch 3's checkpoint is written,
    if a later one does not replace it before.

    `KILL_AT_FIT=2.1`: in epoch 1 of the process's fit number 2 (from 0). `KILL_RANK=1`: only that process of several.
    `KILL_SIGNAL=15`: with that signal, not SIGKILL.
    """

    fits = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        KillAt.fits += 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if os.environ.get("KILL_AT_FIT") == f"{self.fits}.{trainer.current_epoch}":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_meant = os.environ.get("KILL_RANK", str(trainer.global_rank)) == str(trainer.global_rank)
        if is_meant and os.environ.get("KILL_AT") == f"{trainer.current_epoch}.{batch_idx}":
            os.kill(os.getpid(), int(os.environ.get("KILL_SIGNAL", signal.SIGKILL)))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if os.environ.get("KILL_AT") == f"{trainer.current_epoch}.save":
            checkpoint["bomb"] = _Bomb()


class _Bomb:
    def __deepcopy__(self, memo: object) -> "_Bomb":  # a checkpoint that waits for its turn
        return self

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
