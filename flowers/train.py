"""Train a classifier on a folder of images: `python -m flowers.train --help`."""

from flowers.cli import program
from flowers.runs.resume import expand_resume_args
from flowers.settings.schema.training import TrainSettings


def train(settings: TrainSettings) -> float | dict[str, float]:
    """Train; return the validation accuracy of the best checkpoint.

    With `settings.find_lr`, only find learning rates, and return them by the names of their settings.
    """
    if settings.find_lr:
        from flowers.training.lr_finder import find_learning_rates

        return find_learning_rates(settings)
    from flowers.training.experiment import run_training

    return run_training(settings)


def check(settings: TrainSettings) -> None:
    """Check a run before Hydra creates its folder."""
    from flowers.training.checks import check_run

    check_run(settings)


main = program(train, TrainSettings, expand_resume_args, check)

if __name__ == "__main__":
    main()
