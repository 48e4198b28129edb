"""Train a run in this process, and with nothing on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from flowers.runtime.files import short_name
from flowers.runtime.logging import configure_logging, isolated_logging, write_traceback
from flowers.settings.job import run_overrides
from flowers.settings.overrides import quote_override
from flowers.settings.schema.training import TrainSettings
from flowers.training.experiment import run_training


def train_in_process(overrides: Sequence[str]) -> None:
    """Train as `python -m flowers.train` does, but in this process and with nothing on the terminal.

    Raises:
        Exception: Whatever the training raises; its traceback is in the run's log file.
    """

    def task(settings: TrainSettings) -> None:
        configure_logging()
        try:
            run_training(settings)
        except Exception as error:
            write_traceback(error)
            raise

    with isolated_logging():
        run_overrides([*overrides, "hydra/job_logging=file"], TrainSettings, task)


def group_override(folder: Path) -> str:
    """Return the override by which trackers show the runs in a folder together; one that follows it takes its place."""
    return f"group={quote_override(short_name(folder))}"
