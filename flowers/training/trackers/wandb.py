"""Weights & Biases, an optional package: runs, and their groups.

It does not phone home: what it reports about its own use is switched off, unless the environment says otherwise.
"""

import logging
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from flowers.runtime.files import short_name
from flowers.runtime.text import one_line, printable
from flowers.training.trackers.server import ServerTracker, error_line
from flowers.training.trackers.tracker import Picture, Tracker

log = logging.getLogger(__name__)

PROJECT = "flowers"  # as in conf/logger/wandb.yaml

_SERVER_SECONDS = 5.0
# Before wandb is imported: without it, it looks up the address of a collector of errors even when it is offline.
_DEFAULTS = {"WANDB_ERROR_REPORTING": "false"}
# What the run folder holds anyway (settings, code version, log), or what nobody asked for (the load of the machine).
_SETTINGS = {
    "console": "off",
    "disable_git": True,
    "init_timeout": 30.0,
    "save_code": False,
    "silent": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandbTracker(Tracker, WandbLogger):
    """Log to a run of Weights & Biases."""

    def log_scalars(self, scalars: Mapping[str, float], step: int | None) -> None:
        """Log points of curves."""
        WandbLogger.log_metrics(self, scalars, step)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log settings."""
        WandbLogger.log_hyperparams(self, {**settings})

    def log_image(self, name: str, picture: Picture, step: int) -> None:  # type: ignore[override]
        """Log an image."""
        WandbLogger.log_image(self, name, [picture.image], step)

    def log_page(self, page: Path) -> None:
        """Log a page, which is shown."""
        import wandb

        self.experiment.log({page.stem: wandb.Html(str(page), inject=False)})

    def log_best_checkpoint(self, path: Path) -> None:
        """Log where the best checkpoint is."""
        self.experiment.summary["best_checkpoint"] = printable(path)

    def finish(self, status: str) -> None:
        """End the run."""
        self.experiment.finish(exit_code=int(status != "success"))


def make_wandb_tracker(run_dir: str | Path, group: str | None, project: str, mode: str) -> ServerTracker:
    """Return a tracker of Weights & Biases, which writes to `<run_dir>/wandb`.

    Args:
        run_dir: The run folder.
        group: The name of the group that the run is shown in; None for none.
        project: The project.
        mode: offline, online or disabled. Online becomes offline if the server is away.
    """
    open_tracker = partial(_open_wandb, run_dir=Path(run_dir), group=group, project=project, mode=mode)
    watch = f"wandb sync {one_line(run_dir)}/wandb/offline-run-*" if mode == "offline" else mode
    return ServerTracker("wandb", Path(run_dir), open_tracker, watch)


def _open_wandb(run_id: str | None, run_dir: Path, group: str | None, project: str, mode: str) -> WandbTracker:
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    import wandb

    settings = {"dir": str(run_dir), "id": run_id or uuid.uuid4().hex[:8], "name": short_name(run_dir)}
    start = partial(wandb.init, project=project, group=group, resume="allow", settings=_SETTINGS, **settings)
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
    return WandbTracker(experiment=run, save_dir=run_dir, project=project)


def _check_reachable(url: str) -> None:
    """Raise OSError if no server answers. A proxy of the environment is used, as by the client."""
    with suppress(urllib.error.HTTPError):  # an answer
        urllib.request.urlopen(url, timeout=_SERVER_SECONDS).close()
