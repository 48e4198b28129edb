"""Score a trained run: `python -m flowers.evaluate --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def evaluate(cfg: DictConfig) -> float:
    """Score a run on a split or on other images; return the accuracy."""
    from flowers.evaluation.evaluator import report_page, run_evaluation
    from flowers.runs.run_folder import TRACKERS_FILE

    accuracy = run_evaluation(cfg)
    page = report_page(cfg)
    if page and page.with_name(TRACKERS_FILE).is_file():
        from flowers.training.trackers.ended import log_page

        log_page(page.parent, page)
    return accuracy


main = program(evaluate, "evaluate")

if __name__ == "__main__":
    main()
