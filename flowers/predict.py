"""Classify images with a trained run: `python -m flowers.predict --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def predict(cfg: DictConfig) -> int:
    """Classify images, one row per file; return how many could be read."""
    from flowers.deploy.predict import run_prediction

    return run_prediction(cfg)


main = program(predict, "predict")

if __name__ == "__main__":
    main()
