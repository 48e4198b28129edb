"""Train a classifier on a folder of images: `python -m flowers.train --help`."""

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runtime.run_folder import expand_resume_args


def train(cfg: DictConfig) -> float:
    """Train with the settings in `cfg`; return the validation accuracy of the best checkpoint."""
    from flowers.training.experiment import run_training

    return run_training(cfg)


def check(cfg: DictConfig) -> None:
    """Check a run before Hydra creates its folder."""
    from flowers.training.experiment import check_run

    check_run(cfg)


main = program(train, "train", expand_resume_args, check)

if __name__ == "__main__":
    main()
