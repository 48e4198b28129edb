"""What each tracker is told besides curves: settings, images, files, and how the run ended.

A tracker is a logger of Lightning. Those that may need a server are wrapped in `Tracker`, which survives its loss. To
support another one, add a case to `log_image`, `log_file` and `log_best_checkpoint`.
"""

import logging
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from flowers.runs.run_folder import TRACKERS_FILE
from flowers.runtime.files import read_json, write_json
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.text import one_line, printable
from flowers.settings.overrides import flatten
from flowers.settings.schema.run_files import TrackerIds
from flowers.settings.validation import check_file
from flowers.training.csv_logger import RunCSVLogger, image_file, make_csv_logger
from flowers.training.tensorboard import Picture, chart_names, log_picture

log = logging.getLogger(__name__)

_MLFLOW_VALUE = 250  # characters of a parameter that the logger of Lightning keeps


def make_loggers(groups: Mapping[str, DictConfig], run_dir: Path) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        groups: The settings of each, by name.
        run_dir: The run folder, where a file keeps what a lost server would have been told.
    """
    loggers: list[Logger] = [instantiate(group) for group in groups.values()]
    kept = [logger for logger in loggers if isinstance(logger, (TensorBoardLogger, CSVLogger))]
    for logger in loggers:
        if isinstance(logger, Tracker) and not kept:
            logger.fallback = kept_by = make_csv_logger(run_dir)
            kept = [kept_by]
    return loggers


class Tracker(Logger):
    """Log with a logger of Lightning for as long as it works: a run does not end because a server is away.

    The first error is logged in one line. From then on `fallback` takes its place.

    Args:
        name: The option of the group `logger`, for messages.
        run_dir: The run folder, which keeps the id.
        open_logger: Makes the logger, of a new run or of the one whose id is given. It is called at the first use, and
            only in the first process of a run.
        watch: What shows the run, for a log line.

    Attributes:
        fallback: What logs instead once the tracker is lost; None if another logger keeps the run anyway.
    """

    def __init__(self, name: str, run_dir: Path, open_logger: Callable[[str | None], Logger], watch: str) -> None:
        super().__init__()
        self._name, self._run_dir, self._open, self.watch = name, run_dir, open_logger, watch
        self.fallback: Logger | None = None
        self._logger: Logger | None = None
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

    def call(self, action: Callable[[Logger], object]) -> None:
        """Do something with the logger."""
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

    def _opened(self) -> Logger:
        if self._logger is None:
            self._logger = self._open(self.version)
            ids = read_tracker_ids(self._run_dir)
            if ids.get(self._name) != self._logger.version:
                write_json(ids | {self._name: self._logger.version}, self._run_dir / TRACKERS_FILE)
        return self._logger

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars at a step."""
        named = chart_names(metrics)
        self.call(lambda logger: logger.log_metrics(named, None if step is None else int(step)))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log settings."""
        self.call(lambda logger: logger.log_hyperparams(params))

    def save(self) -> None:
        """Write what waits in memory."""
        self.call(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        """Write what waits in memory. Lightning calls this at the end of a stage; `tracked` ends the run."""
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


def each_logger(trainer: Trainer, action: Callable[[Logger], object]) -> None:
    """Do something with each logger of a trainer, in the first process."""
    for logger in trainer.loggers if is_rank_zero() else ():
        if isinstance(logger, Tracker):
            logger.call(action)
        else:
            action(logger)


@contextmanager
def tracked(trainer: Trainer, config: DictConfig) -> Iterator[None]:
    """Log the settings of a run at its start, and tell the trackers how it ended."""
    each_logger(trainer, lambda logger: start_run(logger, hyperparameters(config)))
    status = "failed"
    try:
        yield
        status = "success"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        for tracker in trainer.loggers:
            if isinstance(tracker, Tracker):
                tracker.call(lambda logger: end_run(logger, status))


def hyperparameters(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a run by key, such as "optimizer.lr", without those of what runs beside training."""
    flat = flatten(OmegaConf.to_container(config, resolve=True))
    return {
        key: printable(value) if isinstance(value, str) else value
        for key, value in flat.items()
        if not (isinstance(value, Mapping) and value) and not key.startswith(("callbacks", "logger", "resume"))
    }


def start_run(logger: Logger, settings: dict[str, Any]) -> None:
    """Log the settings of a run. A resumed one may have others."""
    match logger:
        case TensorBoardLogger():
            pass  # `log_hyperparameters` logs the row of the HPARAMS tab at the end
        case MLFlowLogger():
            client, run_id = logger.experiment, str(logger.run_id)
            known = client.get_run(run_id).data.params
            client.update_run(run_id, status="RUNNING")
            logger.log_hyperparams({key: value for key, value in settings.items() if key not in known})
            for key in known.keys() & settings.keys():  # MLflow refuses another value for a parameter
                if known[key] != str(settings[key])[:_MLFLOW_VALUE]:
                    client.set_tag(run_id, f"resumed.{key}", str(settings[key]))
        case _:
            logger.log_hyperparams(settings)


def end_run(logger: Logger, status: str) -> None:
    """Say how a run ended: success, failed or KILLED, the words of the loggers."""
    match logger:
        case WandbLogger():
            logger.experiment.finish(exit_code=int(status != "success"))
        case _:
            logger.finalize(status)


def log_image(logger: Logger, name: str, picture: Picture, step: int) -> None:
    """Log a picture, if the logger shows pictures.

    Args:
        logger: A logger of Lightning.
        name: Such as "val/confusion".
        picture: The picture.
        step: The position on the x-axis.
    """
    match logger:
        case TensorBoardLogger():
            log_picture(logger, name, picture, step)
        case RunCSVLogger():
            logger.log_image(name, picture.png, step)
        case MLFlowLogger():
            # As a file: MLflow would caption an image of its charts with all parameters of the run.
            logger.experiment.log_image(str(logger.run_id), picture.image, image_file(name, step))
        case WandbLogger():
            logger.log_image(name, [picture.image], step)


def log_file(logger: Logger, path: Path) -> None:
    """Log a file of the run folder to a tracker that keeps files elsewhere; a page is shown there."""
    match logger:
        case MLFlowLogger():
            logger.experiment.log_artifact(str(logger.run_id), str(path))
        case WandbLogger():
            import wandb

            logger.experiment.log({path.stem: wandb.Html(str(path), inject=False)})


def log_best_checkpoint(logger: Logger, path: Path) -> None:
    """Log where the best checkpoint is."""
    match logger:
        case TensorBoardLogger():
            logger.experiment.add_text("best_checkpoint", printable(path))
        case MLFlowLogger():
            logger.experiment.set_tag(str(logger.run_id), "best_checkpoint", printable(path))
        case WandbLogger():
            logger.experiment.summary["best_checkpoint"] = printable(path)
        case _:
            logger.log_hyperparams({"best_checkpoint": printable(path)})


def watch_lines(loggers: Sequence[Logger], run_dir: Path) -> list[str]:
    """Return a line for each logger that says how to see what it logs."""
    lines = []
    for logger in loggers:
        match logger:
            case TensorBoardLogger():
                lines += [f"to watch: tensorboard --logdir {run_dir}"]
            case CSVLogger():
                lines += [f"curves: {Path(logger.log_dir, 'metrics.csv')}"]
            case Tracker():
                lines += [f"{logger.name}: {logger.watch}"]
    return lines
