"""Compare trained runs: `python -m flowers.compare --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import CompareSettings


def compare(settings: CompareSettings) -> None:
    """Compare runs pair by pair, or the groups of a multirun."""
    from flowers.evaluation.comparison import run_comparison

    run_comparison(settings)


main = program(compare, CompareSettings)

if __name__ == "__main__":
    main()
