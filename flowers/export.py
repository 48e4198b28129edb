"""Export a trained run: `python -m flowers.export --help`."""

from typing import Any

from omegaconf import DictConfig

from flowers.cli import program


def export(cfg: DictConfig) -> dict[str, Any]:
    """Export a run to a folder; return its parity report."""
    from flowers.deploy.export.pipeline import run_export

    return run_export(cfg)


main = program(export, "export")

if __name__ == "__main__":
    main()
