"""Log a page about a run that has ended: the trackers that know the run are opened again."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from flowers.runs.run_folder import CONFIG_FILE, TRACKERS_FILE, read_config
from flowers.runtime.text import one_line
from flowers.settings.schema.run_files import is_plain_name
from flowers.training.trackers.mlflow import make_mlflow_tracker
from flowers.training.trackers.server import ServerTracker, read_tracker_ids
from flowers.training.trackers.wandb import PROJECT, make_wandb_tracker

log = logging.getLogger(__name__)


def log_page(run_dir: Path, page: Path) -> None:
    """Log a page about a run that has ended, such as report.html, to the trackers that know the run.

    The run folder may come from a stranger. It says which of the trackers below know the run, and by which id. Where
    they are, the environment of the user says.

    Raises:
        ValueError: trackers.json or config.yaml is damaged.
    """
    ids = {name: run_id for name, run_id in read_tracker_ids(run_dir).items() if run_id}
    groups = read_config(run_dir).get("logger") if ids else None
    for name in ids:
        if name not in _OPEN_ENDED or not isinstance(groups, Mapping) or name not in groups:
            wanted = f"expected {' or '.join(_OPEN_ENDED)}, as its {CONFIG_FILE} has it"
            log.warning("%s: %s: %s: it gets no page", one_line(run_dir / TRACKERS_FILE), name, wanted)
        elif tracker := _OPEN_ENDED[name](run_dir, groups[name]):
            tracker.log_page(page)
            if name == "wandb":  # it sends the page when the run, which was opened again, ends
                tracker.finish("success")


def _open_ended_mlflow(run_dir: Path, _: object) -> ServerTracker | None:
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("mlflow.db").is_file():
        log.warning("logger=mlflow: set MLFLOW_TRACKING_URI to the address that the run was logged to: it gets no page")
        return None
    return make_mlflow_tracker(run_dir, None, "", None)


def _open_ended_wandb(run_dir: Path, settings: object) -> ServerTracker | None:
    if (run_dir / "wandb").is_symlink():
        log.warning("logger=wandb: %s is a link: it gets no page", one_line(run_dir / "wandb"))
        return None
    stored = settings.get("project") if isinstance(settings, Mapping) else None
    project = os.environ.get("WANDB_PROJECT") or (stored if is_plain_name(stored) else PROJECT)
    return make_wandb_tracker(run_dir, None, project, os.environ.get("WANDB_MODE", "offline"))


# How a tracker that knows a run is opened again. A run folder names one of these, and nothing else.
_OPEN_ENDED: dict[str, Callable[[Path, object], ServerTracker | None]] = {
    "mlflow": _open_ended_mlflow,
    "wandb": _open_ended_wandb,
}
