"""Write a new experiment: `flowers new-experiment --help`."""

import sys

from flowers.settings.experiment_file import write_experiment

_HELP = """Usage: flowers new-experiment NAME

Write conf/experiment/NAME.yaml below the working directory: a short file of settings, each with a
comment, to edit. All programs of this project find it from that directory: experiment=NAME.
"""


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(_HELP)
        return
    if len(arguments) != 1:
        sys.exit("error: expected one name: flowers new-experiment NAME")
    try:
        path = write_experiment(arguments[0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"wrote {path}: edit it, then run\n  flowers train experiment={path.stem}\n")


if __name__ == "__main__":
    main()
