"""Export a trained run: `python -m flowers.export --help`."""

from typing import Any

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runtime.config import require_extra


def export(cfg: DictConfig) -> dict[str, Any]:
    """Export a run to a folder; return its parity report."""
    require_extra("an export", "export", "onnx", "onnxscript", "onnxruntime")
    from flowers.deploy.export.pipeline import run_export

    return run_export(cfg)


main = program(export, "export")

if __name__ == "__main__":
    main()
