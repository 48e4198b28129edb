"""Print JSON schemas of the files in conf/: `flowers schema --help`."""

import json
import sys
from pathlib import Path

from flowers.runtime.files import atomic_write_text
from flowers.settings.json_schema import KINDS, file_name, json_schema, vscode_settings

_HELP = f"""Usage: flowers schema [kind=KIND | output=FOLDER]

Print the JSON schema of a kind of file in conf/, with which editors complete and check such files.
With output=FOLDER, write those of all kinds, and print the settings that make VS Code use them.

  kind=experiment  the kind: {", ".join(KINDS[:3])}, … or a group, such as data
  output=FOLDER    where the schemas are written; existing ones are replaced
"""


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(_HELP)
        return
    try:
        settings = _parse(arguments)
        if "output" not in settings:
            sys.stdout.write(_dump(json_schema(settings.get("kind", "experiment"))))
            return
        folder = Path(settings["output"])
        folder.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            atomic_write_text(folder / file_name(kind), _dump(json_schema(kind)))
        sys.stdout.write(_dump(vscode_settings(settings["output"])))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _parse(arguments: list[str]) -> dict[str, str]:
    settings = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or not value:
            raise ValueError(f"{argument}: expected key=value")
        if key not in ("kind", "output"):
            raise ValueError(f"{key}: no such key: expected kind or output")
        settings[key] = value
    if len(settings) > 1:
        raise ValueError("kind and output: expected one of them")
    return settings


def _dump(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
