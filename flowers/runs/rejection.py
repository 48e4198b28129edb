"""Reject images of none of the classes: by the threshold of their strangeness."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, get_args

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowers.features.strangeness import Strangeness
from flowers.runs.run_folder import REJECTION_FILE
from flowers.runtime.files import atomic_write, open_regular
from flowers.runtime.text import shell_setting
from flowers.settings.schema.values import TestTimeAugmentation

_FORMAT = "1"
_MAX_BYTES = 2**29  # of the file: ImageNet-21k with 4,096 features takes 350 MB


def rejection_threshold(scores: Tensor, share: float) -> float:
    """Return the strangeness above which an image is rejected.

    An image that comes from where the N scores (N,) come from exceeds it with a probability of at most `share`, the
    mean over such scores: the threshold is the quantile of split conformal prediction (Vovk et al., 2005). It is moved
    half way to the next score, so that rounding does not decide about the image that it comes from.

    Raises:
        ValueError: N is too small for so small a share.
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - share) - 1e-9))
    if rank > len(scores):
        raise ValueError(
            f"reject={share:g}: expected at least {1 / (len(scores) + 1):.4f} with {len(scores)} validation images, "
            "or null"
        )
    ordered = scores.sort().values.tolist()
    low, last = ordered[max(rank, 1) - 1], len(ordered) - 1
    gap = ordered[rank] - low if rank <= last else low - ordered[max(rank - 2, 0)]
    return float(low + gap / 2)


@dataclass(frozen=True)
class Rejection:
    """What a run needs to reject images of none of its classes.

    Args:
        strangeness: The score, on the CPU.
        val_scores: The score of each validation image (N,).
        share: The share of images of the classes that may be rejected, above 0 and below 1.
        tta: The test-time augmentation of the scores.
    """

    strangeness: Strangeness
    val_scores: Tensor
    share: float
    tta: str = "none"

    @property
    def threshold(self) -> float:
        """The strangeness above which an image is rejected."""
        return rejection_threshold(self.val_scores, self.share)

    def with_share(self, share: float) -> Self:
        """Return the same with another share, whose threshold is checked to exist."""
        rejection_threshold(self.val_scores, share)
        return replace(self, share=share)

    def save(self, run_dir: Path) -> None:
        """Write rejection.safetensors of a run folder."""
        tensors = {name: value.contiguous() for name, value in self.strangeness.state_dict().items()}
        metadata = {"format": _FORMAT, "reject": repr(self.share), "tta": self.tta}
        content = safetensors.torch.save(tensors | {"val_scores": self.val_scores}, metadata)
        with atomic_write(run_dir / REJECTION_FILE, len(content)) as part:
            part.write_bytes(content)


def load_rejection(run_dir: Path, reject: float | None = None, width: int | None = None) -> Rejection | None:
    """Return what a run needs to reject images; None if nothing is to be rejected.

    Args:
        run_dir: The run folder.
        reject: Another share than that of the run; 0 rejects nothing; None takes that of the run, if it has one.
        width: The number of features of the network, which the file must have; None if that is not known.

    Raises:
        ValueError: The run has no rejection.safetensors but `reject` asks for it, the file is damaged, or there are too
            few validation images for the share.
    """
    path = run_dir / REJECTION_FILE
    if reject == 0 or (reject is None and not path.is_file()):
        return None
    advice = f"python -m flowers.evaluate {shell_setting('run', run_dir)} reject={reject or 0.05:g} makes it"
    if not path.is_file():
        raise ValueError(f"reject={reject:g}: {run_dir} has no {REJECTION_FILE}: {advice}")
    try:
        with open_regular(path), safe_open(path, "pt") as file:
            assert path.stat().st_size <= _MAX_BYTES
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        assert metadata["format"] == _FORMAT
        val_scores = tensors.pop("val_scores")
        with torch.device("meta"):  # of any shape takes no memory: the weight of a stranger need not have it
            strangeness = Strangeness(len(tensors["center"]), len(tensors["gains"]), len(tensors["bias"]))
        strangeness.load_state_dict(tensors, assign=True)
        assert all(tensor.isfinite().all() for tensor in (*tensors.values(), val_scores))
        found = Rejection(strangeness, val_scores, float(metadata["reject"]), metadata["tta"])
        assert 0 < found.share < 1
        assert width in (None, len(strangeness.center))
        assert val_scores.ndim == 1
        assert found.tta in get_args(TestTimeAugmentation)
    except (OSError, SafetensorError, AssertionError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: delete it; {advice}") from error
    return found.with_share(found.share if reject is None else reject)
