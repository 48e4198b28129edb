"""Say what more photos would give: `python -m flowers.learning_curve --help`."""

from collections.abc import Sequence

from flowers.cli import program
from flowers.settings.overrides import last_value
from flowers.settings.schema.programs import LearningCurveSettings


def check_source(overrides: Sequence[str]) -> list[str]:
    """Return the overrides.

    Raises:
        ValueError: They name a run, and also other photos or another model.
    """
    run = last_value(overrides, "run")
    if (
        run
        and run != "null"
        and (own := [line for line in overrides if line.lstrip("+~").startswith(("data", "model"))])
    ):
        raise ValueError(f"{own[0]}: run={run} has its own photos and model: give one of both")
    return list(overrides)


def learning_curve(settings: LearningCurveSettings) -> float:
    """Measure a learning curve; return the predicted accuracy with twice the photos."""
    from flowers.studies.learning_curve import run_learning_curve

    return run_learning_curve(settings)


main = program(learning_curve, LearningCurveSettings, check_source)

if __name__ == "__main__":
    main()
