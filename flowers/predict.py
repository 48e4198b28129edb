"""Classify images with a trained run: `python -m flowers.predict --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import PredictSettings


def predict(settings: PredictSettings) -> int:
    """Classify images, one row per file; return how many could be read."""
    from flowers.deploy.predict import run_prediction

    return run_prediction(settings)


main = program(predict, PredictSettings)

if __name__ == "__main__":
    main()
