"""Compare trained runs: `python -m flowers.compare --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def compare(cfg: DictConfig) -> None:
    """Compare runs pair by pair, or the groups of a multirun."""
    from flowers.evaluation.comparison import run_comparison

    run_comparison(cfg)


main = program(compare, "compare")

if __name__ == "__main__":
    main()
