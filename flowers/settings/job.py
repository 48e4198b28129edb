"""Run tasks as Hydra does: jobs of a multirun, and single runs whose settings are composed already."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, run_job
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from flowers.runtime.files import short_name
from flowers.settings.config import CONF, compose_run, read_settings, settings_of_run
from flowers.settings.overrides import composes_jobs_once, escape_interpolations, hydra_context
from flowers.settings.programs import program_of
from flowers.settings.validation import S


def run_with_hydra(schema: type[S], job: Callable[[Callable[[], S], bool], Any]) -> Any:
    """Do what the flags on the command line say, such as `--cfg job`, or run the jobs of a multirun.

    Args:
        schema: The settings of the program.
        job: Called for each job, perhaps in another process, with a function that returns its settings, and whether it
            is one of a multirun.
    """

    def run(cfg: DictConfig) -> Any:
        own = HydraConfig.get()
        os.chdir(own.runtime.cwd)  # a launcher may start the job in another folder
        if is_multirun() and "group" in cfg and not cfg.group:
            cfg.group = short_name(Path(own.sweep.dir))
        return job(lambda: read_settings(cfg, schema), is_multirun())

    with composes_jobs_once():
        return hydra.main(version_base="1.3", config_path=str(CONF), config_name=program_of(schema))(run)()


def run_composed(cfg: DictConfig, task: Callable[[], Any]) -> Any:
    """Make the folder of a single run, set up logging, and call a task, within `hydra_context`.

    `hydra.main` composes a configuration twice more, which takes half a second each time.

    Args:
        cfg: The configuration, with its group `hydra`.
        task: What it raises is raised here.
    """
    errors: list[Exception] = []

    def run(_: DictConfig) -> Any:
        try:
            return task()
        except Exception as error:
            errors.append(error)  # Hydra keeps it, and would print more than the error
            raise

    cfg.hydra.mode = RunMode.RUN
    name = cfg.hydra.job.config_name
    configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)
    callbacks = Callbacks(cfg)
    callbacks.on_run_start(config=cfg, config_name=name)
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)
    done = run_job(run, cfg, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context)
    callbacks.on_run_end(config=cfg, config_name=name, job_return=done)
    if errors:
        raise errors[0]
    return done.return_value


def run_overrides(overrides: Sequence[str], schema: type[S], task: Callable[[S], Any]) -> Any:
    """Call a task with the settings that overrides give, in a run folder, as the command line does.

    Args:
        overrides: From `check_overrides`.
        schema: The settings of the program.
        task: What it raises is raised here.

    Raises:
        ValueError: See `compose_run` and `read_settings`.
    """
    with hydra_context():
        cfg = compose_run(overrides, program_of(schema))
        settings = settings_of_run(cfg, schema)
        return run_composed(cfg, lambda: task(settings))


def is_multirun() -> bool:
    """Return whether this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def multirun_dir() -> Path | None:
    """Return the folder of the multirun that this is a job of; None if it is none."""
    return Path(HydraConfig.get().sweep.dir) if is_multirun() else None


def job_overrides() -> list[str] | None:
    """Return the overrides of this job; None where Hydra did not start it. Of those of Hydra, only its search path."""
    if not HydraConfig.initialized():
        return None
    given = HydraConfig.get().overrides
    lines = [*given.task, *(line for line in given.hydra if line.startswith("hydra.searchpath="))]
    return [escape_interpolations(line) for line in lines]  # OmegaConf has resolved them


class MultirunObserver(Callback):
    """A callback of Hydra that is told the folder of a multirun."""

    def started(self, folder: Path) -> None:
        """Act before the first job."""

    def ended(self, folder: Path) -> None:
        """Act after the last job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Call `started`."""
        self.started(Path(config.hydra.sweep.dir).resolve())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Call `ended`."""
        self.ended(Path(config.hydra.sweep.dir).resolve())
