"""Train a run in this process, and with nothing on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from flowers.runs.run_folder import short_name
from flowers.runtime.logging import configure_logging, isolated_logging, write_traceback
from flowers.settings.config import read_settings
from flowers.settings.overrides import hydra_context, quote_override
from flowers.settings.schema.training import TrainSettings
from flowers.training.experiment import run_training


def train_in_process(overrides: Sequence[str]) -> None:
    """Train as `python -m flowers.train` does, but in this process and with nothing on the terminal.

    Raises:
        Exception: Whatever the training raises; its traceback is in the run's log file.
    """
    errors: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        configure_logging()
        try:
            run_training(read_settings(cfg, TrainSettings))
        except Exception as error:
            write_traceback(error)
            errors.append(error)  # Hydra would print it

    with isolated_logging(), hydra_context() as hydra:
        hydra.run("train", task, [*overrides, "hydra/job_logging=file"])
    if errors:
        raise errors[0]


def group_override(folder: Path) -> str:
    """Return the override by which trackers show the runs in a folder together; one that follows it takes its place."""
    return f"group={quote_override(short_name(folder))}"
