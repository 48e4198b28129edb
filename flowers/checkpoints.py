"""Checkpoints that are whole at any moment, and how far a run had come in one."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from flowers import atomic
from flowers.model import FlowerClassifier

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, then renames: Lightning's own goes through the temporary folder, perhaps another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves `checkpoint` at `path`, whole or not at all."""
        with atomic.writing(Path(path)) as beside:
            torch.save(checkpoint, beside)


def load(path: str | Path) -> FlowerClassifier:
    """The model of a checkpoint, on the CPU; no code in the file is run."""
    return FlowerClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, its tensors left on disk until they are used; no code in it is run.

    Raises ValueError where the file is missing or is no checkpoint of this project.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["hyper_parameters"]["classes"]
    except Exception as error:  # torch.load raises anything from OSError to UnpicklingError on a stranger's bytes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a checkpoint of flowers"
        raise ValueError(f"{path} cannot be read: {reason}") from error
    return dict(checkpoint)
