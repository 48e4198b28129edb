"""The pages of docs/ say what the program says."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import flowers
from flowers.command_hints import check_arguments
from flowers.runs import run_folder
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


def architecture_table(first: str) -> list[list[str]]:
    """Return the cells in code of each row of the table whose heading begins with a word."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = page.partition(f"\n| {first} | ")[2].partition("\n\n")[0]
    return [re.findall(r"`([^`]+)`", line) for line in table.splitlines()[2:]]


def test_the_table_of_programs_names_each_and_what_it_calls():
    rows = {name: (function, file) for name, function, file in architecture_table("program")}
    assert {*rows, "train"} == {*CONFIGURED}
    for function, file in rows.values():
        assert f"\ndef {function}(" in (DOCS.parent / file).read_text(encoding="utf-8")


def test_the_table_of_a_run_folder_names_each_file():
    named = {cell.removesuffix("/").partition("/val.csv")[0] for row in architecture_table("file") for cell in row}
    ours = {value for name, value in vars(run_folder).items() if name.endswith(("_FILE", "_DIR", "_CHECKPOINT"))}
    assert ours - {run_folder.MULTIRUN_FILE, run_folder.HYDRA_OVERRIDES_FILE} <= named


def test_the_table_of_packages_names_each_one():
    packages = {path.parent.name for path in Path(flowers.__file__).parent.glob("*/__init__.py")}
    assert {row[0].removeprefix("flowers/") for row in architecture_table("package")} == {*packages, "*.py"}


def test_there_are_such_settings():
    assert len(COMMANDS) > 60
