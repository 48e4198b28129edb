"""Train a classifier on a folder of images: `python -m flowers.train --help`."""

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runtime.run_folder import expand_resume_args


def train(cfg: DictConfig) -> float:
    """Train as `cfg` says; return the best checkpoint's validation accuracy."""
    from flowers.training.experiment import (
        run_training,  # torch takes seconds to import: --help and typos are answered without it
    )

    return run_training(cfg)


main = program(train, "train", expand_resume_args)

if __name__ == "__main__":
    main()
