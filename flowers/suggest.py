"""Say which unlabeled photos to label next: `python -m flowers.suggest --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import SuggestSettings


def suggest(settings: SuggestSettings) -> int:
    """Rank the photos of a folder for labeling; return how many are suggested."""
    from flowers.studies.suggestion import run_suggestion

    return run_suggestion(settings)


main = program(suggest, SuggestSettings)

if __name__ == "__main__":
    main()
