"""Show which parts of an image a trained run uses: `python -m flowers.explain --help`."""

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runtime.extras import require_extra


def explain(cfg: DictConfig) -> int:
    """Write a Grad-CAM picture for each image; return how many could be read."""
    require_extra("an explanation", "explain", "captum")
    from flowers.deploy.explain import run_explanation

    return run_explanation(cfg)


main = program(explain, "explain")

if __name__ == "__main__":
    main()
