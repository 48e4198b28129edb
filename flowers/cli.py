"""TODO"""

import functools
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flowers.runtime.config import CONF, check_overrides
from flowers.runtime.logging import configure_logging, filter_harmless_warnings, write_traceback

log = logging.getLogger(__name__)


# When imported: in a launcher's worker, Hydra composes the configuration before anything else of ours is called.
filter_harmless_warnings()


# What a user's mistake is raised as, here and by what is called with the user's settings.
USER_ERRORS = (ValueError, HydraException, OmegaConfBaseException)


def program(
    task: Callable[[DictConfig], Any], config_name: str, arguments: Callable[[Sequence[str]], list[str]] = list
) -> Callable[..., Any]:
    """The `main` of a program that composes `conf/<config_name>.yaml` with the command line's overrides.

    In a multirun, a job that fails is logged and the next one runs. Given a configuration, `main` does `task` with it
    and gives back what that gives.

    Args:
        task: what to do with the configuration; a ValueError from it is shown as its text alone.
        config_name: of the configuration.
        arguments: rewrites the command line's overrides first.
    """
    hydra_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(_log_errors(task))

    @functools.wraps(task)
    def main(cfg: DictConfig | None = None) -> Any:
        if cfg is not None:
            return task(cfg)
        _escape_unprintable()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through to here
        given = get_args_parser().parse_args().overrides
        try:
            wanted = check_overrides([_absolute_sweep_dir(line) for line in arguments(given)], config_name)
            sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in given] + wanted
            return hydra_main()
        except USER_ERRORS as error:
            sys.exit(f"error: {_error_text(error)}")
        except OSError as error:  # a folder that cannot be made, a full disk
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(130)
        except Exception as error:
            if not any(line.startswith("hydra/launcher=") for line in given):
                raise
            # What a job raises ends in its log: this is the launcher's own, as where a job is killed.
            sys.exit(f"error: the multirun was cut short: {type(error).__name__}: {str(error).partition(chr(10))[0]}")

    return main


def _escape_unprintable() -> None:
    """Lets through what the terminal cannot show, such as a file's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _absolute_sweep_dir(override: str) -> str:
    """The sweep's folder as an absolute path: on another machine a relative one would start in another folder."""
    return re.sub(r"^(hydra\.sweep\.dir=['\"]?)(?![/$'\"])", r"\1${hydra.runtime.cwd}/", override)


def _log_errors(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """`task`, with the traceback of what it raises in the job's log file and one line of it on the terminal.

    A multirun goes past a failed job, which gives NaN; else the program ends.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> Any:
        configure_logging()
        _escape_unprintable()
        os.chdir(HydraConfig.get().runtime.cwd)  # a launcher may have begun in another folder
        try:
            return task(cfg)
        except Exception as error:
            log_file = write_traceback(error)
            # Lightning's own word for a user's mistake; by name, since importing it here would take seconds.
            is_mistake = isinstance(error, USER_ERRORS) or type(error).__name__ == "MisconfigurationException"
            if log_file is None and not is_mistake:
                raise
            line = _error_text(error) if is_mistake else f"{error!r} (traceback in {log_file})"
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                sys.exit(f"error: {line}")
            log.error("this job failed: %s", line)
            return float("nan")

    return run


def _error_text(error: BaseException) -> str:
    """An error's text; of one that Hydra raised while it called something, that of its cause."""
    if isinstance(error, HydraException) and error.__cause__ is not None:
        return f"{str(error).splitlines()[0]} {_error_text(error.__cause__)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not given: add {error.full_key}=…"
    return str(error)
