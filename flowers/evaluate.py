"""Score a trained run: `python -m flowers.evaluate --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def evaluate(cfg: DictConfig) -> float:
    """Score a run on a split or on other images; return the accuracy."""
    from flowers.evaluation.evaluator import run_evaluation

    return run_evaluation(cfg)


main = program(evaluate, "evaluate")

if __name__ == "__main__":
    main()
