"""Train a classifier on a folder of images: `python -m flowers.train --help`."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flowers.cli import program
from flowers.runs.resume import expand_resume_args, resume_job
from flowers.settings.schema.training import TrainSettings

if TYPE_CHECKING:
    from flowers.training.checks import PreparedRun

log = logging.getLogger(__name__)


def train(settings: "TrainSettings | PreparedRun") -> float | dict[str, float]:
    """Train; return the validation accuracy of the best checkpoint.

    With `settings.find_lr`, only find learning rates, and return them by the names of their settings.
    """
    from flowers.settings.job import job_overrides, multirun_dir
    from flowers.training.checks import prepare_run

    multirun = multirun_dir()
    if isinstance(settings, TrainSettings) and settings.resume and multirun:
        accuracy, interrupted = resume_job(settings.resume, multirun, Path(settings.run_dir), job_overrides() or [])
        if accuracy is not None:
            log.info("%s has finished already, with accuracy %.4f", settings.run_dir, accuracy)
            return accuracy
        settings = settings.replace(resume=interrupted and str(interrupted))
    run = prepare_run(settings)
    if run.settings.find_lr:
        from flowers.training.lr_finder import find_learning_rates

        return find_learning_rates(run)
    from flowers.training.experiment import run_training

    return run_training(run)


def prepare(settings: TrainSettings) -> Callable[[], float | dict[str, float]]:
    """Check a run before Hydra creates its folder."""
    from flowers.training.checks import check_run

    return partial(train, check_run(settings))


main = program(train, TrainSettings, expand_resume_args, prepare)

if __name__ == "__main__":
    main()
