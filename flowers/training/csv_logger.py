"""Log curves to a CSV file in the run folder, and images to PNG files beside it."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from flowers.runtime.files import atomic_write
from flowers.training.tensorboard import chart_names, logged_steps

_FOLDER = "csv"


def make_csv_logger(run_dir: str | Path) -> CSVLogger:
    """Return a logger to `<run_dir>/csv`. It drops what an earlier session logged after its last checkpoint."""
    return RunCSVLogger(run_dir, logged_steps(run_dir))


def image_file(name: str, step: int) -> str:
    """Return the file of an image, such as "val/confusion-000120.png"."""
    return f"{name}-{step:06}.png"


class RunCSVLogger(CSVLogger):
    """Continue the file of an earlier session, with the names of the curves in TensorBoard.

    Args:
        run_dir: The run folder.
        steps: The steps of that session that count.
    """

    def __init__(self, run_dir: str | Path, steps: int) -> None:
        super().__init__(run_dir, name="", version=_FOLDER)
        self._steps = steps

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the files; made at the first use."""
        if self._experiment is None:
            self._experiment = _ContinuingWriter(self.log_dir, self._steps)
        return self._experiment  # type: ignore[return-value]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Log scalars at a step."""
        super().log_metrics({**chart_names(metrics)}, None if step is None else int(step))

    def log_image(self, name: str, png: bytes, step: int) -> None:
        """Write the content of a PNG file."""
        path = Path(self.log_dir, image_file(name, step))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, len(png), durable=False) as temporary:
            temporary.write_bytes(png)


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
