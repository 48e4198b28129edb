"""MLflow and Weights & Biases: their runs and groups. Both are optional packages.

Neither phones home: what they report about their own use is switched off, unless the environment says otherwise.
"""

import logging
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from flowers.runs.run_folder import CONFIG_FILE, TRACKERS_FILE, read_config, short_name
from flowers.runtime.text import mask_password, one_line
from flowers.settings.schema.run_files import is_plain_name
from flowers.training.trackers import Tracker, end_run, error_line, log_file, read_tracker_ids

log = logging.getLogger(__name__)

_SERVER_SECONDS = 5.0
_WANDB_PROJECT = "flowers"  # as in conf/logger/wandb.yaml

_MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # With the defaults, 7 and 120, a lost server holds up training for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
# Before wandb is imported: without it, it looks up the address of a collector of errors even when it is offline.
_WANDB_DEFAULTS = {"WANDB_ERROR_REPORTING": "false"}
# What the run folder holds anyway (settings, code version, log), or what nobody asked for (the load of the machine).
_WANDB_SETTINGS = {
    "console": "off",
    "disable_git": True,
    "init_timeout": 30.0,
    "save_code": False,
    "silent": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def local_tracking_uri() -> str:
    """Return the address of the database of MLflow in the working directory, where `mlflow ui` looks for it."""
    return f"sqlite:///{Path('mlflow.db').resolve()}"


def make_mlflow_tracker(
    run_dir: str | Path, group: str | None, experiment_name: str, tracking_uri: str | None
) -> Tracker:
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
    open_logger = partial(_open_mlflow, uri=uri, experiment=experiment_name, name=name, group=group)
    return Tracker("mlflow", Path(run_dir), open_logger, watch)


def _open_mlflow(run_id: str | None, uri: str, experiment: str, name: str, group: str | None) -> MLFlowLogger:
    for variable, value in _MLFLOW_DEFAULTS.items():
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
    logger = MLFlowLogger(experiment, name, uri, tags=tags, run_id=run_id)
    _ = logger.experiment  # makes the run
    return logger


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


def make_wandb_tracker(run_dir: str | Path, group: str | None, project: str, mode: str) -> Tracker:
    """Return a tracker of Weights & Biases, which writes to `<run_dir>/wandb`.

    Args:
        run_dir: The run folder.
        group: The name of the group that the run is shown in; None for none.
        project: The project.
        mode: offline, online or disabled. Online becomes offline if the server is away.
    """
    open_logger = partial(_open_wandb, run_dir=Path(run_dir), group=group, project=project, mode=mode)
    watch = f"wandb sync {one_line(run_dir)}/wandb/offline-run-*" if mode == "offline" else mode
    return Tracker("wandb", Path(run_dir), open_logger, watch)


def _open_wandb(run_id: str | None, run_dir: Path, group: str | None, project: str, mode: str) -> WandbLogger:
    for variable, value in _WANDB_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    import wandb

    settings = {"dir": str(run_dir), "id": run_id or uuid.uuid4().hex[:8], "name": short_name(run_dir)}
    start = partial(wandb.init, project=project, group=group, resume="allow", settings=_WANDB_SETTINGS, **settings)
    if mode == "online":
        try:
            _check_reachable(wandb.setup().settings.base_url)
            run = start(mode=mode)
        except Exception as error:  # no server, no key, or anything else: the run is kept, and may be uploaded later
            upload = f"wandb sync {one_line(run_dir)}/wandb/offline-run-*"
            log.warning("logger=wandb: %s: this run is offline, later: %s", error_line(error), upload)
            wandb.teardown()  # forgets the id, which a failed start leaves in use
            run = start(mode="offline")
    else:
        run = start(mode=mode)
    run.define_metric("trainer/global_step")  # as the logger does when it starts the run itself
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=run_dir, project=project)


def _check_reachable(url: str) -> None:
    """Raise OSError if no server answers. A proxy of the environment is used, as by the client."""
    with suppress(urllib.error.HTTPError):  # an answer
        urllib.request.urlopen(url, timeout=_SERVER_SECONDS).close()


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
            tracker.call(lambda logger: log_file(logger, page))
            tracker.call(lambda logger: end_run(logger, "success") if isinstance(logger, WandbLogger) else None)


def _open_ended_mlflow(run_dir: Path, _: object) -> Tracker | None:
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("mlflow.db").is_file():
        log.warning("logger=mlflow: set MLFLOW_TRACKING_URI to the address that the run was logged to: it gets no page")
        return None
    return make_mlflow_tracker(run_dir, None, "", None)


def _open_ended_wandb(run_dir: Path, settings: object) -> Tracker | None:
    if (run_dir / "wandb").is_symlink():
        log.warning("logger=wandb: %s is a link: it gets no page", one_line(run_dir / "wandb"))
        return None
    stored = settings.get("project") if isinstance(settings, Mapping) else None
    project = os.environ.get("WANDB_PROJECT") or (stored if is_plain_name(stored) else _WANDB_PROJECT)
    return make_wandb_tracker(run_dir, None, project, os.environ.get("WANDB_MODE", "offline"))


# How a tracker that knows a run is opened again. A run folder names one of these, and nothing else.
_OPEN_ENDED: dict[str, Callable[[Path, object], Tracker | None]] = {
    "mlflow": _open_ended_mlflow,
    "wandb": _open_ended_wandb,
}
