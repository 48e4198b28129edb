"""Train a classifier on a folder of images: `python -m flowers.train --help`."""

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runs.run_folder import expand_resume_args


def train(cfg: DictConfig) -> float | dict[str, float]:
    """Train with the settings in `cfg`; return the validation accuracy of the best checkpoint.

    With `cfg.find_lr`, only find learning rates, and return them by the names of their settings.
    """
    if cfg.find_lr:
        from flowers.training.lr_finder import find_learning_rates

        return find_learning_rates(cfg)
    from flowers.training.experiment import run_training

    return run_training(cfg)


def check(cfg: DictConfig) -> None:
    """Check a run before Hydra creates its folder."""
    from flowers.training.experiment import check_run

    check_run(cfg)


main = program(train, "train", expand_resume_args, check)

if __name__ == "__main__":
    main()
