"""Complete a command line for bash: `flowers complete --help` says how to set it up."""

import os
import sys

from flowers.settings.completion import completions
from flowers.settings.programs import all_programs

_HELP = """Usage: complete -o default -o nospace -C 'flowers complete' flowers

Put this line into ~/.bashrc: the TAB key then completes programs, groups, options, keys and values.
In zsh, put "autoload -U bashcompinit && bashcompinit" before it, into ~/.zshrc.
"""


def main() -> None:
    """Run the command line: bash gives the name of the command, the word to complete, and the word before it."""
    if "COMP_LINE" not in os.environ or len(sys.argv) < 3:
        sys.stdout.write(_HELP)
        return
    line = os.environ["COMP_LINE"]
    line = os.fsencode(line)[: int(os.environ.get("COMP_POINT", len(line)))].decode(errors="replace")
    try:
        found = completions(line, sys.argv[2], [*all_programs()])
    except Exception:  # a damaged file in conf/ of the user: the program says what is wrong, when it runs
        return
    # The line ends in a space where the word is complete: with nospace, bash adds none.
    ends = "" if len(found) != 1 or found[0].endswith(("=", ".", "/")) else " "
    sys.stdout.write("".join(f"{each}{ends}\n" for each in found))


if __name__ == "__main__":
    main()
