"""The pages of docs/ say what the program says."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import flowers
from flowers.command_hints import check_arguments
from flowers.settings.literal_overrides import literal_overrides
from flowers.settings.overrides import check_overrides
from flowers.settings.programs import CONFIGURED

DOCS = Path(__file__).parents[2] / "docs"
MESSAGES = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
TABLES = re.findall(r"^\| .+ \| (.+) \|$", (DOCS / "coming-from.md").read_text(encoding="utf-8"), re.MULTILINE)
COMMANDS = [code for cell in TABLES for code in re.findall(r"`([^`]+=[^`]+|flowers [^`]+)`", cell)]


def texts_of_the_program() -> list[str]:
    """Return the texts in the code; what is filled in is `…`."""
    found = []
    for path in Path(flowers.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [each.value if isinstance(each, ast.Constant) else "…" for each in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_each_entry_of_troubleshooting_is_a_message_of_the_program():
    code = "\n".join(texts_of_the_program())
    assert len(MESSAGES) > 20
    for message in MESSAGES:
        for part in filter(str.strip, re.split("…", message)):
            assert part in code, f"{message}: {part}"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_setting_for_users_of_other_tools_is_one(command: str):
    name, *rest = command.removeprefix("flowers ").split() if command.startswith("flowers ") else ("train", command)
    assert name in CONFIGURED
    arguments = [
        word.replace("FOLDER", "runs/mine").replace("PATH", ".") for each in rest for word in shlex.split(each)
    ]
    check_arguments(name, arguments)
    check_overrides(literal_overrides(arguments, [name]), name)


def test_there_are_such_settings():
    assert len(COMMANDS) > 60
