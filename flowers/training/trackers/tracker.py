"""What a tracker of a run does: each is a logger of Lightning that also takes images, pages and the end of the run.

Another package may register one as an entry point of `flowers.trackers`: a subclass of `Tracker`, which is called with
`run_dir`. `logger=NAME` then uses it. Any other logger of Lightning gets curves and settings.
"""

import io
import zlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from PIL import Image

from flowers.runtime.launch import is_rank_zero
from flowers.runtime.text import printable


class Picture:
    """A picture for any tracker.

    Args:
        pixels: uint8 (H, W, 3).
        shows_photos: Whether it shows photos, which JPEG makes a third to a half as large as PNG.
    """

    def __init__(self, pixels: np.ndarray[Any, np.dtype[np.uint8]], shows_photos: bool = False) -> None:
        self.image, self.shows_photos = Image.fromarray(np.ascontiguousarray(pixels)), shows_photos

    @cached_property
    def png(self) -> bytes:
        """The content of a PNG file: as small as with the default of Pillow, in less than half of the time."""
        content = io.BytesIO()
        self.image.save(content, "PNG", compress_type=zlib.Z_RLE)
        return content.getvalue()

    @cached_property
    def encoded(self) -> bytes:
        """The content of a JPEG file if the picture shows photos, else of a PNG file: for what takes either."""
        if not self.shows_photos:
            return self.png
        content = io.BytesIO()
        self.image.save(content, "JPEG", quality=95, subsampling=0)
        return content.getvalue()


class Tracker(Logger):
    """Tell a tracker about a run. What it does not show, it leaves out: only `log_scalars` must be written."""

    def log_scalars(self, scalars: Mapping[str, float], step: int | None) -> None:
        """Log scalars at a step, under the names of their charts."""
        raise NotImplementedError

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log the settings of a run by key when it starts. A resumed run may have others."""

    def log_image(self, name: str, picture: Picture, step: int) -> None:
        """Log a picture, such as "val/confusion", at a position on the x-axis."""

    def log_page(self, page: Path) -> None:
        """Log a page of the run folder, such as report.html."""

    def log_best_checkpoint(self, path: Path) -> None:
        """Log where the best checkpoint is."""
        self.log_settings({"best_checkpoint": printable(path)})

    def finish(self, status: str) -> None:
        """Say how the run ended: success, failed or KILLED, the words of the loggers of Lightning."""

    def how_to_watch(self) -> str:
        """Return a line that says how to see what is logged."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars at a step, as Lightning names them."""
        self.log_scalars(chart_names(metrics), None if step is None else int(step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log settings."""
        self.log_settings(params if isinstance(params, dict) else vars(params))


class LightningTracker(Tracker):
    """Tell any other logger of Lightning about a run: Lightning itself logs the scalars."""

    name = version = None

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log settings."""
        self._logger.log_hyperparams(dict(settings))


def chart_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics under the names of their charts.

    TensorBoard opens the first two groups of charts: these are `train` and `val`. What Lightning and the callbacks log
    outside of a group, or as `lr/…`, is in `train`.
    """
    return {
        name if "/" in name and not name.startswith("lr/") else f"train/{name}": value
        for name, value in metrics.items()
    }


def each_tracker(trainer: Trainer, action: Callable[[Tracker], object]) -> None:
    """Do something with each tracker of a trainer, in the first process."""
    for logger in trainer.loggers if is_rank_zero() else ():
        action(logger if isinstance(logger, Tracker) else LightningTracker(logger))
