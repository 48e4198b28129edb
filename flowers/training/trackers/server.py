"""Trackers that may need a server: a run does not end because the server is away."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowers.runs.run_folder import TRACKERS_FILE
from flowers.runtime.files import read_json, write_json
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.text import one_line
from flowers.settings.schema.run_files import TrackerIds
from flowers.settings.validation import check_file
from flowers.training.trackers.tracker import Picture, Tracker

log = logging.getLogger(__name__)


class ServerTracker(Tracker):
    """Log with another tracker for as long as it works.

    The first error is logged in one line. From then on `fallback` takes its place.

    Args:
        name: The option of the group `logger`, for messages.
        run_dir: The run folder, which keeps the id.
        open_tracker: Makes the tracker, of a new run or of the one whose id is given. It is called at the first use,
            and only in the first process of a run.
        watch: What shows the run, for a log line.

    Attributes:
        fallback: What logs instead once the tracker is lost; None if another tracker keeps the run anyway.
    """

    def __init__(self, name: str, run_dir: Path, open_tracker: Callable[[str | None], Tracker], watch: str) -> None:
        super().__init__()
        self._name, self._run_dir, self._open, self._watch = name, run_dir, open_tracker, watch
        self.fallback: Tracker | None = None
        self._tracker: Tracker | None = None
        self._is_lost = False

    @property
    def name(self) -> str:
        """The option of the group `logger`."""
        return self._name

    @property
    def version(self) -> str | None:
        """The id of the run in the tracker."""
        return read_tracker_ids(self._run_dir).get(self._name)

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._run_dir)

    def _call(self, action: Callable[[Tracker], object]) -> None:
        """Do something with the tracker."""
        if not is_rank_zero():
            return
        if not self._is_lost:
            try:
                action(self._opened())
                return
            except Exception as error:  # a server, and the client for it, may fail in any way
                self._is_lost = True
                instead = f"; {self._run_dir / 'csv'} does" if self.fallback else ""
                log.warning("logger=%s: %s: it gets no more of this run%s", self._name, error_line(error), instead)
        if self.fallback:
            action(self.fallback)

    def _opened(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._open(self.version)
            ids = read_tracker_ids(self._run_dir)
            if ids.get(self._name) != self._tracker.version:
                write_json(ids | {self._name: self._tracker.version}, self._run_dir / TRACKERS_FILE)
        return self._tracker

    def log_scalars(self, scalars: Mapping[str, float], step: int | None) -> None:
        """Log scalars."""
        self._call(lambda tracker: tracker.log_scalars(scalars, step))

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log settings."""
        self._call(lambda tracker: tracker.log_settings(settings))

    def log_image(self, name: str, picture: Picture, step: int) -> None:
        """Log an image."""
        self._call(lambda tracker: tracker.log_image(name, picture, step))

    def log_page(self, page: Path) -> None:
        """Log a page of the run folder, such as report.html."""
        self._call(lambda tracker: tracker.log_page(page))

    def log_best_checkpoint(self, path: Path) -> None:
        """Log where the best checkpoint is."""
        self._call(lambda tracker: tracker.log_best_checkpoint(path))

    def finish(self, status: str) -> None:
        """Say how the run ended."""
        self._call(lambda tracker: tracker.finish(status))

    def how_to_watch(self) -> str:
        """Return what shows the run."""
        return f"{self._name}: {self._watch}"

    def save(self) -> None:
        """Write what waits in memory."""
        self._call(lambda tracker: tracker.save())

    def finalize(self, status: str) -> None:
        """Write what waits in memory. Lightning calls this at the end of a stage; `finish` ends the run."""
        self.save()


def read_tracker_ids(run_dir: Path) -> dict[str, str | None]:
    """Return the ids of a run in MLflow and in Weights & Biases, by the name of the tracker.

    Raises:
        ValueError: The file is damaged, or holds what is no plain name and id.
    """
    path = run_dir / TRACKERS_FILE
    if not path.is_file():
        return {}
    content = read_json(path)
    check_file(path, {"ids": content}, TrackerIds)
    return content


def error_line(error: BaseException) -> str:
    """Return what went wrong, in a line: that of the operating system if there is one."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    system = [each.strerror for each in chain if isinstance(each, OSError) and each.strerror]
    return (
        str(system[-1]) if system else one_line(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
    )
