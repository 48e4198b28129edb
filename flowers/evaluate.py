"""Score a trained run: `python -m flowers.evaluate --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import EvaluateSettings


def evaluate(settings: EvaluateSettings) -> float:
    """Score a run on a split or on other images; return the accuracy."""
    from flowers.evaluation.evaluator import report_page, run_evaluation
    from flowers.runs.run_folder import TRACKERS_FILE

    accuracy = run_evaluation(settings)
    page = report_page(settings)
    if page and page.with_name(TRACKERS_FILE).is_file():
        from flowers.training.trackers.ended import log_page

        log_page(page.parent, page)
    return accuracy


main = program(evaluate, EvaluateSettings)

if __name__ == "__main__":
    main()
