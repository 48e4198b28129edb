"""Turn a function of settings into a command-line program."""

import functools
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowers.command_hints import check_arguments
from flowers.given_paths import check_given_paths
from flowers.runtime.files import DiskFullError
from flowers.runtime.logging import configure_logging, filter_harmless_warnings, write_traceback
from flowers.runtime.machine_errors import machine_error_text, open_standard_streams
from flowers.runtime.text import printable
from flowers.settings.config_reference import help_text
from flowers.settings.errors import error_text, mistakes
from flowers.settings.plain_command import plain_values
from flowers.settings.programs import program_of
from flowers.settings.schema.values import Group
from flowers.settings.validation import S, check_values

log = logging.getLogger(__name__)

# On import: in a worker of a launcher, Hydra composes the configuration before it calls any code of this project.
filter_harmless_warnings()

_RUN_FLAGS = {"-m", "--multirun"}  # the other flags of Hydra print something and run nothing


def program(
    task: Callable[[S], Any],
    schema: type[S],
    rewrite_overrides: Callable[[Sequence[str]], list[str]] = list,
    prepare: Callable[[S], Callable[[], Any]] | None = None,
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
        prepare: Checks the settings of a single run before Hydra creates the run folder, and returns a function that
            does with them what `task` does; it may import torch. In a multirun, which may start its jobs on other
            machines, each job checks its own.
    """
    config_name = program_of(schema)

    def ready(settings: S) -> Callable[[], Any]:
        check_given_paths(settings)
        return prepare(settings) if prepare else partial(task, settings)

    def run_single(overrides: list[str]) -> Any:
        from flowers.settings.config import compose_single, own_folder
        from flowers.settings.job import run_composed
        from flowers.settings.overrides import hydra_context

        with hydra_context():
            composed = compose_single(overrides, schema)
            sys.argv[1:] = composed.overrides  # a launcher of several processes starts them with these
            with own_folder(composed, schema) as run:
                start = ready(run.settings)
            return run_composed(run.cfg, partial(_report_errors, start))

    def run_jobs() -> Any:
        from flowers.settings.job import run_with_hydra

        return run_with_hydra(schema, lambda read, is_multirun: _report_errors(lambda: task(read()), is_multirun))

    @functools.wraps(task)
    def main(settings: S | None = None) -> Any:
        if settings is not None:
            return task(settings)
        open_standard_streams()
        _escape_unprintable()
        sys.argv[1:] = _with_search_path(sys.argv[1:])
        # Before torch is loaded: it then asks Linux for huge pages, for fewer page faults in large activations.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        flags = {argument for argument in sys.argv[1:] if argument.startswith("-")}
        if config_name in ("app", "sweep", "probe") or flags & _RUN_FLAGS:
            # Before torch is loaded. OpenMP's threads otherwise spin while they wait, which slows down the jobs beside
            # this one, and the threads of the app that decode. A single run on an idle machine is faster with threads
            # that spin: 71 against 75 s (medians of 3).
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if flags & {"--shell-completion", "-sc"}:  # its arguments are those of Hydra
            return run_jobs()
        if flags & {"--help", "-h"}:
            sys.stdout.write(help_text(config_name))
            return None
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors
        given = [argument for argument in sys.argv[1:] if _is_override(argument)]
        rest = [argument for argument in sys.argv[1:] if argument not in given]
        try:
            check_arguments(config_name, sys.argv[1:])
            if not flags and (values := plain_values(config_name, given)) is not None:
                return _report_errors(ready(check_values(values, schema)))
            from flowers.settings.literal_overrides import literal_overrides
            from flowers.settings.overrides import check_overrides

            runs_several = config_name in ("sweep", "ablation")
            has_sweeps = (
                runs_several or bool(flags & _RUN_FLAGS) or any(line.startswith("hydra.mode=") for line in given)
            )
            programs = [config_name, "train"] if runs_several else [config_name]
            overrides = literal_overrides(given, programs, has_sweeps)
            lines = [_absolute_sweep_dir(each) for each in rewrite_overrides(overrides)]
            if not flags and not any(line.startswith("hydra.mode=") for line in lines):
                return run_single(lines)
            checked = check_overrides(lines, config_name)
            if not flags - _RUN_FLAGS:
                _check_sweep(checked, schema)
            sys.argv[1:] = [*rest, *checked]
            return run_jobs()
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(130)
        except Exception as error:
            # OSError: for example a full disk, or a folder that cannot be created.
            if isinstance(error, (*mistakes(), OSError)) or machine_error_text(error):
                sys.exit(f"error: {printable(error_text(error))}")
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


def _with_search_path(arguments: Sequence[str]) -> list[str]:
    """Return arguments with `--config-dir DIR` as an override, which resumes, launchers and jobs pass on."""
    folders, rest, left = list[str](), list[str](), iter(arguments)
    for argument in left:
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            if not (folder := value if equals else next(left, "")):
                sys.exit(f"error: {flag}: expected a folder with options, such as conf/")
            folders.append(folder)
        else:
            rest.append(argument)
    if not folders:
        return rest
    from flowers.settings.overrides import quote_override

    paths = [quote_override(f"file://{Path(folder).expanduser().absolute()}") for folder in folders]
    return [*rest, f"hydra.searchpath=[{','.join(paths)}]"]


def _escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks, as in a file name, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_sweep(overrides: Sequence[str], schema: type[Group]) -> None:
    """Raise ValueError if no job of a multirun can run; print a line if one of them cannot."""
    from flowers.settings.config import compose_settings, has_valid_job

    try:
        compose_settings(overrides, schema)
    except ValueError as error:
        if not has_valid_job(overrides, schema):
            raise
        sys.stderr.write(f"warning: {printable(error)}: jobs with this value will fail, the others run\n")


def _absolute_sweep_dir(override: str) -> str:
    """Make the folder of a multirun absolute: a job on another machine may start in another folder."""
    return re.sub(r"^(hydra\.sweep\.dir=['\"]?)(?![/$'\"])", r"\1${hydra.runtime.cwd}/", override)


def _report_errors(run: Callable[[], Any], is_multirun: bool = False) -> Any:
    """Run a job: an error leaves its traceback in the job's log file and one line on the terminal.

    A failed job of a multirun returns NaN; any other failed job ends the program.
    """
    configure_logging()
    _escape_unprintable()
    try:
        return run()
    except Exception as error:
        log_file = write_traceback(error)
        # Lightning raises MisconfigurationException for a user's mistake. By name: the import takes seconds.
        is_mistake = (
            isinstance(error, (*mistakes(), DiskFullError))
            or type(error).__name__ == "MisconfigurationException"
            or machine_error_text(error) is not None
        )
        if log_file is None and not is_mistake:
            raise
        line = error_text(error) if is_mistake else f"{error!r} (traceback in {log_file})"
        if not is_multirun:
            sys.exit(f"error: {printable(line)}")
        log.error("this job failed: %s", line)
        return float("nan")
