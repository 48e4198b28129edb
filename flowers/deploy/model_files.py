"""What `run=` of the programs that answer may name. This imports no torch, which takes seconds."""

from pathlib import Path

from flowers.runs.run_folder import find_checkpoint

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a folder for a model hub

_EXPORTED = ("model.onnx", "model.int8.onnx", "model.pt2", "web")


def is_hub_folder(path: str | Path | None) -> bool:
    """Return whether `path` is a folder that `write_hub_folder` wrote."""
    return bool(path) and all((Path(str(path)) / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))


def find_classifier(run: str | Path | None) -> Path:
    """Return what `run=` names for `Classifier.load`: a folder for a hub, or else the checkpoint of `find_checkpoint`.

    Raises:
        ValueError: It is a folder of exported programs; see also `find_checkpoint`.
    """
    if is_hub_folder(run):
        return Path(str(run))
    if run and (found := next((name for name in _EXPORTED if (Path(run) / name).exists()), None)):
        raise ValueError(
            f"run={run}: {found} is an exported program, which its own runtime runs: expected a run folder, a "
            "checkpoint, or what formats=[hub] of flowers.export writes"
        )
    return find_checkpoint(run)
