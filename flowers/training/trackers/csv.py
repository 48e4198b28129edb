"""Log curves to a CSV file in the run folder, and images to PNG files beside it."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from flowers.runtime.files import atomic_write
from flowers.training.trackers.tensorboard import logged_steps
from flowers.training.trackers.tracker import Picture, Tracker

_FOLDER = "csv"


def image_file(name: str, step: int) -> str:
    """Return the file of an image, such as "val/confusion-000120.png"."""
    return f"{name}-{step:06}.png"


class CSVTracker(Tracker, CSVLogger):  # type: ignore[misc]
    """Log to `<run_dir>/csv`. It drops what an earlier session logged after its last checkpoint, and goes on there.

    Args:
        run_dir: The run folder.
        steps: The steps of that session that count; None takes those of its last checkpoint.
    """

    def __init__(self, run_dir: str | Path, steps: int | None = None) -> None:
        super().__init__(run_dir, name="", version=_FOLDER)
        self._steps = logged_steps(run_dir) if steps is None else steps

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the files; made at the first use."""
        if self._experiment is None:
            self._experiment = _ContinuingWriter(self.log_dir, self._steps)
        return self._experiment  # type: ignore[return-value]

    def log_scalars(self, scalars: Mapping[str, float], step: int | None) -> None:
        """Add a row."""
        CSVLogger.log_metrics(self, {**scalars}, step)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Write settings to hparams.yaml."""
        CSVLogger.log_hyperparams(self, {**settings})

    def log_image(self, name: str, picture: Picture, step: int) -> None:
        """Write a picture to a PNG file."""
        path = Path(self.log_dir, image_file(name, step))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, len(picture.png), durable=False) as temporary:
            temporary.write_bytes(picture.png)

    def finish(self, status: str) -> None:
        """Write what waits in memory."""
        self.finalize(status)

    def how_to_watch(self) -> str:
        """Return where the curves are."""
        return f"curves: {Path(self.log_dir, 'metrics.csv')}"


class _ContinuingWriter(ExperimentWriter):
    """Append to the file of an earlier session: that of Lightning deletes it."""

    def __init__(self, log_dir: str, steps: int) -> None:
        self._steps = steps
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file))

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a session that was killed may have left a part of a line
        reader = csv.DictReader(io.StringIO(whole))
        rows = [row for row in reader if int(row["step"]) < self._steps]
        if not rows:
            path.unlink()
            return
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, reader.fieldnames or [])
            writer.writeheader()
            writer.writerows(rows)
