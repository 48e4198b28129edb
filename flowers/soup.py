"""Average the weights of several runs: `python -m flowers.soup --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import SoupSettings


def soup(settings: SoupSettings) -> float:
    """Average runs into a new run folder; return its validation accuracy."""
    from flowers.training.soup import run_soup

    return run_soup(settings)


main = program(soup, SoupSettings)

if __name__ == "__main__":
    main()
