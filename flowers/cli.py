"""Turn a function of settings into a command-line program."""

import functools
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flowers.command_hints import check_arguments
from flowers.runs.run_folder import short_name
from flowers.runtime.files import DiskFullError
from flowers.runtime.logging import configure_logging, filter_harmless_warnings, write_traceback
from flowers.runtime.machine_errors import machine_error_text, open_standard_streams
from flowers.runtime.text import printable
from flowers.settings.config import CONF, compose_run, compose_settings, read_settings, settings_of_run
from flowers.settings.config_reference import help_text
from flowers.settings.job import run_composed
from flowers.settings.literal_overrides import literal_overrides
from flowers.settings.overrides import check_overrides, hydra_context, parse_overrides
from flowers.settings.programs import program_of
from flowers.settings.validation import S

log = logging.getLogger(__name__)

# On import: in a worker of a launcher, Hydra composes the configuration before it calls any code of this project.
filter_harmless_warnings()

_RUN_FLAGS = {"-m", "--multirun"}  # the other flags of Hydra print something and run nothing

# How mistakes of the user are raised, here and by the code that reads the settings.
USER_ERRORS = (ValueError, HydraException, OmegaConfBaseException)


def program(
    task: Callable[[S], Any],
    schema: type[S],
    rewrite_overrides: Callable[[Sequence[str]], list[str]] = list,
    check: Callable[[S], object] | None = None,
) -> Callable[..., Any]:
    """Wrap a function of settings as a program that reports a user's mistake in one line and exits with 1.

    Without an argument, the returned `main` composes the program's file in conf/ with the overrides of the command line
    and runs `task`. With settings as its argument, it calls `task` and returns the result. A multirun logs a job that
    fails and continues with the next one.

    Args:
        task: The function. It imports torch only when it is called, since that takes seconds: help and mistyped
            overrides are answered before. The program prints a ValueError without a traceback.
        schema: The settings of the program.
        rewrite_overrides: Changes the overrides before they are checked.
        check: Checks the settings of a single run before Hydra creates the run folder; it may import torch. In a
            multirun, which may start its jobs on other machines, each job checks its own.
    """
    config_name = program_of(schema)

    def job(cfg: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN and "group" in cfg and not cfg.group:
            cfg.group = short_name(Path(HydraConfig.get().sweep.dir))
        return task(read_settings(cfg, schema))

    hydra_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(_log_errors(job))

    def run_single(overrides: list[str]) -> Any:
        _check_single(overrides)
        with hydra_context():
            cfg = compose_run(overrides, config_name)
            settings = settings_of_run(cfg, schema)
            if check is not None:
                check(settings)
            return run_composed(cfg, _log_errors(lambda _: task(settings)))

    @functools.wraps(task)
    def main(settings: S | None = None) -> Any:
        if settings is not None:
            return task(settings)
        open_standard_streams()
        _escape_unprintable()
        # Before torch is loaded: it then asks Linux for huge pages, for fewer page faults in large activations.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        flags = {argument for argument in sys.argv[1:] if argument.startswith("-")}
        if config_name in ("app", "sweep", "probe") or flags & _RUN_FLAGS:
            # Before torch is loaded. OpenMP's threads otherwise spin while they wait, which slows down the jobs beside
            # this one, and the threads of the app that decode. A single run on an idle machine is faster with threads
            # that spin: 71 against 75 s (medians of 3).
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if flags & {"--shell-completion", "-sc"}:  # its arguments are those of Hydra
            return hydra_main()
        if flags & {"--help", "-h"}:
            sys.stdout.write(help_text(config_name))
            return None
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors
        given = [argument for argument in sys.argv[1:] if _is_override(argument)]
        try:
            check_arguments(config_name, sys.argv[1:])
            runs_several = config_name in ("sweep", "ablation")
            has_sweeps = (
                runs_several or bool(flags & _RUN_FLAGS) or any(line.startswith("hydra.mode=") for line in given)
            )
            programs = [config_name, "train"] if runs_several else [config_name]
            overrides = literal_overrides(given, programs, has_sweeps)
            checked = check_overrides([_absolute_sweep_dir(each) for each in rewrite_overrides(overrides)], config_name)
            sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in given] + checked
            if not flags - _RUN_FLAGS:
                if not flags and not any(line.startswith("hydra.mode=") for line in checked):
                    return run_single(checked)
                compose_settings(checked, schema)
            return hydra_main()
        except (*USER_ERRORS, OSError) as error:  # OSError: for example a full disk, or a folder that cannot be created
            sys.exit(f"error: {printable(_error_text(error))}")
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(130)
        except Exception as error:
            if text := machine_error_text(error):
                sys.exit(f"error: {printable(text)}")
            if not any(override.startswith("hydra/launcher=") for override in given):
                raise
            # Errors of a job are in its log; this one comes from the launcher, for example because a job was killed.
            sys.exit(f"error: the multirun stopped early: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        finally:
            if multirun := sys.modules.get("flowers.training.multirun"):  # Hydra has imported it for its callback
                multirun.summarize_unfinished()

    return main


def _is_override(argument: str) -> bool:
    """Return whether an argument is an override, and not a flag or a flag's value (`--cfg job`)."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks, as in a file name, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_single(overrides: Sequence[str]) -> None:
    """Raise ValueError if an override has several values: Hydra answers without -m in four lines."""
    for each in parse_overrides(overrides):
        if each.is_sweep_override():
            key, _, values = str(each.input_line).partition("=")
            raise ValueError(
                f"{key}={values}: expected one value: -m runs each of them, and {key}=[{values}] is a list"
            )


def _absolute_sweep_dir(override: str) -> str:
    """Make the folder of a multirun absolute: a job on another machine may start in another folder."""
    return re.sub(r"^(hydra\.sweep\.dir=['\"]?)(?![/$'\"])", r"\1${hydra.runtime.cwd}/", override)


def _log_errors(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap `task`: an error leaves its traceback in the job's log file and one line on the terminal.

    A failed job of a multirun returns NaN; any other failed job ends the program.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> Any:
        configure_logging()
        _escape_unprintable()
        os.chdir(HydraConfig.get().runtime.cwd)  # a launcher may start the job in another folder
        try:
            return task(cfg)
        except Exception as error:
            log_file = write_traceback(error)
            # Lightning raises MisconfigurationException for a user's mistake. By name: the import takes seconds.
            is_mistake = (
                isinstance(error, (*USER_ERRORS, DiskFullError))
                or type(error).__name__ == "MisconfigurationException"
                or machine_error_text(error) is not None
            )
            if log_file is None and not is_mistake:
                raise
            line = _error_text(error) if is_mistake else f"{error!r} (traceback in {log_file})"
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                sys.exit(f"error: {printable(line)}")
            log.error("this job failed: %s", line)
            return float("nan")

    return run


def _error_text(error: BaseException) -> str:
    """Return an error's text; if Hydra raised it while it called something, with the text of its cause."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected key=value"
    if isinstance(error, HydraException) and error.__cause__ is not None:
        return f"{str(error).splitlines()[0]} {_error_text(error.__cause__)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: give {error.full_key}=…"
    return str(error) if isinstance(error, ValueError) else machine_error_text(error) or str(error)
