"""Average the weights of several runs: `python -m flowers.soup --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def soup(cfg: DictConfig) -> float:
    """Average runs into a new run folder; return its validation accuracy."""
    from flowers.training.soup import run_soup

    return run_soup(cfg)


main = program(soup, "soup")

if __name__ == "__main__":
    main()
