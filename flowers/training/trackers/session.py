"""The trackers of a run: made from its settings, told these at the start, and how the run ended."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from flowers.runtime.text import printable
from flowers.settings.overrides import flatten
from flowers.settings.schema.training import TrainSettings
from flowers.settings.schema.values import Target
from flowers.training.trackers.csv import CSVTracker
from flowers.training.trackers.server import ServerTracker
from flowers.training.trackers.tracker import Tracker, each_tracker


def make_loggers(groups: Mapping[str, Target], run_dir: Path) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        groups: The settings of each, by name.
        run_dir: The run folder, where a file keeps what a lost server would have been told.
    """
    loggers: list[Logger] = [group.build() for group in groups.values()]
    is_kept = any(isinstance(logger, (TensorBoardLogger, CSVLogger)) for logger in loggers)
    for logger in loggers:
        if isinstance(logger, ServerTracker) and not is_kept:
            logger.fallback, is_kept = CSVTracker(run_dir), True
    return loggers


@contextmanager
def tracked(trainer: Trainer, settings: TrainSettings) -> Iterator[None]:
    """Log the settings of a run at its start, and tell the trackers how it ended."""
    logged = hyperparameters(settings)
    each_tracker(trainer, lambda tracker: tracker.log_settings(logged))
    status = "failed"
    try:
        yield
        status = "success"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        each_tracker(trainer, lambda tracker: tracker.finish(status))


def hyperparameters(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings of a run by key, such as "optimizer.lr", without those of what runs beside training."""
    flat = flatten(settings.to_dict())
    return {
        key: printable(value) if isinstance(value, str) else value
        for key, value in flat.items()
        if not (isinstance(value, Mapping) and value) and not key.startswith(("callbacks", "logger", "resume"))
    }


def watch_lines(loggers: Sequence[Logger]) -> list[str]:
    """Return a line for each tracker that says how to see what it logs."""
    return [line for logger in loggers if isinstance(logger, Tracker) and (line := logger.how_to_watch())]
