"""Export a trained run: `python -m flowers.export --help`."""

from typing import Any

from flowers.cli import program
from flowers.settings.schema.programs import ExportSettings


def export(settings: ExportSettings) -> dict[str, Any]:
    """Export a run to a folder; return its parity report."""
    from flowers.deploy.export.pipeline import run_export

    return run_export(settings)


main = program(export, ExportSettings)

if __name__ == "__main__":
    main()
