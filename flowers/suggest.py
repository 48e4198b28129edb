"""Say which unlabeled photos to label next: `python -m flowers.suggest --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def suggest(cfg: DictConfig) -> int:
    """Rank the photos of a folder for labeling; return how many are suggested."""
    from flowers.search.suggestion import run_suggestion

    return run_suggestion(cfg)


main = program(suggest, "suggest")

if __name__ == "__main__":
    main()
