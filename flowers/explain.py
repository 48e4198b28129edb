"""Show which parts of an image a trained run uses: `python -m flowers.explain --help`."""

from flowers.cli import program
from flowers.runtime.extras import require_extra
from flowers.settings.schema.programs import ExplainSettings


def explain(settings: ExplainSettings) -> int:
    """Write a Grad-CAM picture for each image; return how many could be read."""
    require_extra("an explanation", "explain", "captum")
    from flowers.deploy.explain import run_explanation

    return run_explanation(settings)


main = program(explain, ExplainSettings)

if __name__ == "__main__":
    main()
