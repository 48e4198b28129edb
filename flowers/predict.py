"""Classify images with a trained run: `python -m flowers.predict --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def predict(cfg: DictConfig) -> int:
    """Classify images, a row per file; return how many could be read."""
    from flowers.deploy.predict import (
        run_prediction,  # torch takes seconds to import: --help and typos are answered without it
    )

    return run_prediction(cfg)


main = program(predict, "predict")

if __name__ == "__main__":
    main()
