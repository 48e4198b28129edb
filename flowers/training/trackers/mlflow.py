"""MLflow, an optional package: runs, and their groups.

It does not phone home: what it reports about its own use is switched off, unless the environment says otherwise.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger

from flowers.runtime.files import short_name
from flowers.runtime.text import mask_password, one_line, printable
from flowers.training.trackers.csv import image_file
from flowers.training.trackers.server import ServerTracker
from flowers.training.trackers.tracker import Picture, Tracker

_VALUE = 250  # characters of a parameter that the logger of Lightning keeps
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # With the defaults, 7 and 120, a lost server holds up training for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MLflowTracker(Tracker, MLFlowLogger):
    """Log to a run of MLflow."""

    def log_scalars(self, scalars: Mapping[str, float], step: int | None) -> None:
        """Log points of curves."""
        MLFlowLogger.log_metrics(self, scalars, step)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log settings as parameters; those that a resumed run has changed as tags."""
        client, run_id = self.experiment, str(self.run_id)
        known = client.get_run(run_id).data.params
        client.update_run(run_id, status="RUNNING")
        MLFlowLogger.log_hyperparams(self, {key: value for key, value in settings.items() if key not in known})
        for key in known.keys() & settings.keys():  # MLflow refuses another value for a parameter
            if known[key] != str(settings[key])[:_VALUE]:
                client.set_tag(run_id, f"resumed.{key}", str(settings[key]))

    def log_image(self, name: str, picture: Picture, step: int) -> None:
        """Log an image as a file: MLflow would caption an image of its charts with all parameters of the run."""
        self.experiment.log_image(str(self.run_id), picture.image, image_file(name, step))

    def log_page(self, page: Path) -> None:
        """Log a page as a file, which MLflow shows."""
        self.experiment.log_artifact(str(self.run_id), str(page))

    def log_best_checkpoint(self, path: Path) -> None:
        """Log where the best checkpoint is."""
        self.experiment.set_tag(str(self.run_id), "best_checkpoint", printable(path))

    def finish(self, status: str) -> None:
        """End the run."""
        self.finalize(status)


def local_tracking_uri() -> str:
    """Return the address of the database of MLflow in the working directory, where `mlflow ui` looks for it."""
    return f"sqlite:///{Path('mlflow.db').resolve()}"


def make_mlflow_tracker(
    run_dir: str | Path, group: str | None, experiment_name: str, tracking_uri: str | None
) -> ServerTracker:
    """Return a tracker of MLflow.

    Args:
        run_dir: The run folder.
        group: The name of the run that this one is listed below; None for none.
        experiment_name: The experiment; it is created if necessary.
        tracking_uri: The server or the database; None takes `MLFLOW_TRACKING_URI`, else `local_tracking_uri`.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri()
    is_server = uri.startswith("http")
    watch = mask_password(uri) if is_server else f"mlflow ui --backend-store-uri {one_line(uri)}"
    name = short_name(Path(run_dir))
    open_tracker = partial(_open_mlflow, uri=uri, experiment=experiment_name, name=name, group=group)
    return ServerTracker("mlflow", Path(run_dir), open_tracker, watch)


def _open_mlflow(run_id: str | None, uri: str, experiment: str, name: str, group: str | None) -> MLflowTracker:
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for module in ("mlflow", "alembic", "urllib3.connectionpool", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(module).setLevel(logging.ERROR)  # progress, and each try to reach a server
    # The first runs of a multirun may start at once, and a database is created only once.
    is_file = uri.startswith("sqlite:///")
    with FileLock(uri.removeprefix("sqlite:///") + ".lock") if is_file else nullcontext():
        client = MlflowClient(uri)
        if run_id is None and client.get_experiment_by_name(experiment) is None:
            with suppress(MlflowException):  # another run was faster
                client.create_experiment(experiment)
    tags = {} if group is None or run_id else {"mlflow.parentRunId": _mlflow_parent(client, experiment, group)}
    tracker = MLflowTracker(experiment, name, uri, tags=tags, run_id=run_id)
    _ = tracker.experiment  # makes the run
    return tracker


def _mlflow_parent(client: Any, experiment: str, group: str) -> str:
    """Return the id of the run that stands for a group, the first one of this name; make it if there is none."""
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    escaped = group.replace("'", "_")

    def find() -> list[Any]:
        return list(client.search_runs([experiment_id], f"tags.group = '{escaped}'", order_by=["start_time", "run_id"]))

    if not find():
        parent = client.create_run(experiment_id, tags={"mlflow.runName": group, "group": escaped})
        client.set_terminated(parent.info.run_id)
    return str(find()[0].info.run_id)
