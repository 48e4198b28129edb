"""How far a run is."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What is done of a run.

    Attributes:
        epochs_done: Finished epochs so far, over all stages and sessions of the run.
        steps: Optimizer steps so far, likewise.
        ended: The epochs of each stage that ended early; see `StageEarlyStopping`.
    """

    epochs_done: int = 0
    steps: int = 0
    ended: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint says of it."""
        counts: dict[str, Any] = {"epochs_done": self.epochs_done, "steps": self.steps}
        return counts | ({"ended": dict(self.ended)} if self.ended else {})
