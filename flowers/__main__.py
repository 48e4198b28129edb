"""The console command: `flowers train …` is `python -m flowers.train …`, and `flowers` alone lists the programs."""

import runpy
import sys
import traceback

import flowers
from flowers.runtime.machine_errors import open_standard_streams
from flowers.runtime.text import printable
from flowers.settings.config_reference import help_text, summary_of
from flowers.settings.programs import PROGRAMS, all_programs
from flowers.settings.registry import add_working_directory, import_problem


def main() -> None:
    """Run the program that the first argument names, with the other arguments."""
    open_standard_streams()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "help" and arguments:  # flowers help train
        name, arguments = arguments[0], ["--help"]
    if name in ("--help", "-h", "help"):
        sys.stdout.write(list_programs())
    elif name == "--version":
        sys.stdout.write(f"flowers {flowers.__version__}\n")
    elif program := all_programs().get(name):
        sys.argv[1:] = arguments
        if program.settings:
            add_working_directory()
            if arguments[:1] in (["--help"], ["-h"]):  # the imports of a program take longer than its help
                sys.stdout.write(help_text(name))
                return
        try:
            # As `python -m` does: launchers find the module's name in `__main__.__spec__` and can start it again.
            runpy.run_module(program.module, run_name="__main__", alter_sys=True)
        except Exception as error:
            if name in PROGRAMS or any(each.name == "main" for each in traceback.extract_tb(error.__traceback__)[1:]):
                raise
            sys.exit(f"error: {name}: {program.module} cannot be imported: {import_problem(error)}")
    else:
        from flowers.command_hints import unknown_program  # imports the settings of all programs

        sys.exit(f"error: {printable(unknown_program(name, arguments))}")


def list_programs() -> str:
    """Return one line per program."""
    lines = [f"  {each.name:14} {summary_of(each)}".rstrip() for each in all_programs().values()]
    return "\n".join(["Usage: flowers PROGRAM [key=value …]", "", *lines, "", "More: flowers PROGRAM --help"]) + "\n"


if __name__ == "__main__":
    main()
