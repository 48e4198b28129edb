"""Show what a trained run looks at: `python -m flowers.explain --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def explain(cfg: DictConfig) -> int:
    """Write a Grad-CAM picture for each image; return how many could be read."""
    from flowers.deploy.explain import (
        run_explanation,  # torch takes seconds to import: --help and typos are answered without it
    )

    return run_explanation(cfg)


main = program(explain, "explain")

if __name__ == "__main__":
    main()
