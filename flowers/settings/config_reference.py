"""Describe the programs, options and keys of conf/: the text of `--help`, and docs/configuration.md.

A file's description is the comment at its top. A key's text is the comment beside it, else the comment above it, else
the text that the same key has in another file. Print the page with
`python -m flowers.settings.config_reference > docs/configuration.md`.
"""

import importlib.util
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.constructor import SafeConstructor

from flowers.settings.programs import CONFIGURED, Program, all_programs
from flowers.settings.registry import conf_folders, find_parts

_PACKAGE = Path(__file__).resolve().parents[1]

# Beside the package in a checkout, inside it in a wheel. Absolute: Hydra resolves a relative path from its caller.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())

# The groups of which packages may register options, without a file: see `flowers.settings.registry`.
REGISTERED_GROUPS = {
    "data": "sources",
    "model": "backbones",
    "loss": "losses",
    "scheduler": "schedules",
    "logger": "trackers",
}
GROUPS = (
    *(
        "data",
        "data/augmentation",
        "model",
        "optimizer",
        "scheduler",
        "loss",
        "mixing",
        "trainer",
        "callbacks",
        "logger",
        "experiment",
        "debug",
    ),
    *("sweep/sampler", "sweep/pruner", "recipe", "hydra/launcher"),
)
_SKIPPED_KEYS = ("defaults", "hydra", "_target_", "_partial_")
_NOT_FOR_USERS = ("keep ", "set by the program")  # how the texts of keys begin that the help leaves out
_WIDTH = 100  # columns of the help


def config_folders() -> list[Path]:
    """Return where settings are: conf/ of the project, of packages that register parts, and of the user.

    The latter is in the working directory, or in the nearest folder above it within the same project, which begins at
    a pyproject.toml or a .git.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (own := folder / "conf").is_dir():
            is_found = folder == here or _project_of(here) in (folder, *folder.parents)
            return [CONF, *conf_folders(), *([own] if is_found and own != CONF.resolve() else [])]
    return [CONF, *conf_folders()]


def _project_of(folder: Path) -> Path | None:
    """Return the nearest folder with a pyproject.toml or a .git, from `folder` upward; None if there is none."""
    roots = (
        each for each in (folder, *folder.parents) if (each / "pyproject.toml").exists() or (each / ".git").exists()
    )
    return next(roots, None)


def find_config_file(name: str) -> Path:
    """Return the path of a file such as "train" or "data/folder"."""
    paths = [folder / f"{name}.yaml" for folder in config_folders()]
    return next((path for path in paths if path.is_file()), paths[0])


class Setting(NamedTuple):
    """A key of a file: its default as written there ("" for a group of keys), and its text."""

    key: str
    default: str
    text: str


class ConfigFile(NamedTuple):
    """A file of conf/, such as "train" or "data/folder": the lines of its description, and its settings.

    `settings` include those of the files that it builds on. `options` maps a group to its default option. `overridden`
    maps a group to the option that takes the place of a default one.
    """

    name: str
    description: list[str]
    settings: dict[str, Setting]
    options: dict[str, str]
    overridden: dict[str, str]


@cache
def read_config_file(name: str, package: str | None = None) -> ConfigFile:
    """Read `conf/<name>.yaml`. An option that a package registers may have no file.

    Args:
        name: The path below conf/, without the ending.
        package: The prefix of its keys, such as "data"; None derives it from the file.
    """
    group = name.rpartition("/")[0]
    path = find_config_file(name)
    if not path.is_file() and name.rpartition("/")[2] in registered_options(group):
        return ConfigFile(name, [], {}, {}, {})
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    header = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    description = [line[1:].removeprefix(" ") for line in lines[:header]]
    if description and description[0].startswith("@package"):
        package, description = "", description[1:]
    if package is None:
        package = group.replace("/", ".")
    root = yaml.compose(source, Loader=yaml.SafeLoader)
    settings: dict[str, Setting] = {}
    options: dict[str, str] = {}
    overridden: dict[str, str] = {}
    # A second `safe_load` of the text takes ten times as long.
    defaults = (SafeConstructor().construct_document(root) if root else {}).get("defaults", [])
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if isinstance(entry, dict):
            ((key, option),) = entry.items()
            if key.startswith("override"):
                overridden[key.removeprefix("override ").removeprefix("/")] = option
            else:
                options[key] = option
        elif entry == "_self_":
            for key, default, text in _parse_settings(root, lines, header, f"{package}." if package else ""):
                inherited = settings[key].text if key in settings else ""
                settings[key] = Setting(key, default, text or inherited)
        else:
            base = entry.partition("@")[0]
            file = read_config_file(base[1:] if base[0] == "/" else f"{group}/{base}".strip("/"), package)
            settings, options = settings | file.settings, options | file.options
    return ConfigFile(name, description, settings, options, overridden)


def _parse_settings(node: yaml.Node, lines: list[str], header: int, prefix: str) -> Iterator[Setting]:
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        if key.value in _SKIPPED_KEYS:
            continue
        name = f"{prefix}{key.value}"
        is_group = isinstance(value, yaml.MappingNode) and bool(value.value)
        end = key.end_mark if is_group else value.end_mark
        beside = re.match(r":?\s+# (.*)", lines[end.line][end.column :]) if end.line < len(lines) else None
        text = beside[1] if beside else _comment_above(lines, key.start_mark.line, header, key.start_mark.column)
        default = "" if is_group else lines[value.start_mark.line][value.start_mark.column : value.end_mark.column]
        if not is_group or text:
            yield Setting(name, default, text)
        if is_group:
            yield from _parse_settings(value, lines, header, f"{name}.")


def _comment_above(lines: list[str], line: int, header: int, column: int) -> str:
    start = line
    while start > header and lines[start - 1].startswith(" " * column + "# "):
        start -= 1
    return " ".join(each.strip(" #") for each in lines[start:line])


def options_of(group: str) -> list[str]:
    """Return the options of a group, such as "model", in alphabetical order, with those of the user and of packages."""
    return sorted(option_files(group) | registered_options(group))


def option_files(group: str) -> set[str]:
    """Return the options of a group that have a file."""
    return {path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")}


def registered_options(group: str) -> set[str]:
    """Return the options of a group that packages register, which need no file."""
    return set(find_parts(REGISTERED_GROUPS[group])) if group in REGISTERED_GROUPS else set()


def documented_options(group: str) -> list[str]:
    """Return the options of a group that the project brings."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def torchvision_classifiers() -> list[str]:
    """Return the names of the classifiers of torchvision, read from its source: to import it takes seconds."""
    package = importlib.util.find_spec("torchvision")
    assert package is not None, "torchvision is installed with this project"
    assert package.origin is not None
    sources = sorted((Path(package.origin).parent / "models").glob("*.py"))
    found = (re.findall(r"@register_model\(\)\n(?:@.*\n)*def (\w+)", path.read_text("utf-8")) for path in sources)
    return [name for names in found for name in names]


@cache
def _shared_texts() -> dict[str, str]:
    files = [f"{group}/{option}" for group in GROUPS for option in documented_options(group)]
    settings = [setting for name in files for setting in read_config_file(name).settings.values()]
    return {setting.key: setting.text for setting in reversed(settings) if setting.text}


def settings_of(name: str) -> list[Setting]:
    """Return the settings of a program or an option ("train", "data/folder"), each with its text."""
    return [
        setting._replace(text=setting.text or _shared_texts().get(setting.key, ""))
        for setting in read_config_file(name).settings.values()
    ]


def summary_of(program: Program) -> str:
    """Return one line that says what a program does."""
    is_described = not program.text and find_config_file(program.name).is_file()
    return read_config_file(program.name).description[0].partition(":")[0] if is_described else program.text


def help_text(program: str) -> str:
    """Return the text of `--help` for a program."""
    file = read_config_file(program)
    settings = settings_of(program)
    for group, option in file.options.items():
        if option and group not in ("callbacks", "logger", "recipe"):
            settings += [each for each in settings_of(f"{group}/{option}") if each.key.count(".") == 1]
    given = "[group=option …] [key=value …]" if file.options else "[key=value …]"
    _, module, *_, is_installed = all_programs()[program]
    usage = f"flowers {program} {given} (or python -m {module} …)" if is_installed else f"python -m {module} {given}"
    text = [f"Usage: {usage}", "", *file.description, ""]
    if file.options:
        text += ["Groups (group=option, the default option first):"]
        for group, option in file.options.items():
            others = [each for each in options_of(group) if each != option]
            text += _columns(group, ", ".join([option or "none", *others]), 16)
        text += [""]
    text += ["Settings (key=value, with their defaults; ??? must be given):"]
    for key, default, meaning in settings:
        if not meaning.startswith(_NOT_FOR_USERS):
            text += _columns(f"{key}={default}" if default else key, meaning, 30)
    text += [
        "",
        "Flags: --cfg job prints the configuration, -m runs all combinations, --hydra-help lists the rest.",
    ]
    return "\n".join(text) + "\n"


def _columns(left: str, right: str, width: int) -> list[str]:
    lines = textwrap.wrap(right, _WIDTH - width - 4, break_long_words=False, break_on_hyphens=False) or [""]
    if len(left) > width:
        return [f"  {left}", *(f"  {'':{width}}  {line}" for line in lines)]
    return [f"  {left if index == 0 else '':{width}}  {line}".rstrip() for index, line in enumerate(lines)]


def reference_page() -> str:
    """Return docs/configuration.md."""
    page = [
        "# Configuration",
        "",
        "<!-- Generated: python -m flowers.settings.config_reference > docs/configuration.md -->",
        "",
        "Every program takes `key=value` and `group=option` on the command line. `???` marks a value that must be",
        "given. `null` means that the value is absent or chosen automatically, as the text says.",
        "`--cfg job` prints the composed configuration of a command without running it.",
        "",
        "## Programs",
    ]
    for program in CONFIGURED:
        file = read_config_file(program)
        page += ["", f"### flowers {program}", "", "```text", *file.description, "```", ""]
        if file.options:
            choices = [f"`{group}={option or 'null'}`" for group, option in file.options.items()]
            page += [f"Groups and their default options: {', '.join(choices)}.", ""]
        rows = [(each.key, f"`{each.default}`" if each.default else "", each.text) for each in settings_of(program)]
        page += _table(rows)
    page += ["", "## Groups"]
    for group in GROUPS:
        page += ["", f"### {group}", ""]
        for option in documented_options(group):
            description = " ".join(read_config_file(f"{group}/{option}").description)
            page.append(f"- `{group}={option}`" + (f": {description}" if description else ""))
        if group not in ("experiment", "debug"):  # these set keys of other groups
            page += ["", *_table(_group_rows(group))]
    return "\n".join(page) + "\n"


def _group_rows(group: str) -> list[tuple[str, str, str]]:
    options = documented_options(group)
    defaults: dict[str, dict[str, list[str]]] = {}  # key: default: options
    texts: dict[str, str] = {}
    for option in options:
        for setting in settings_of(f"{group}/{option}"):
            defaults.setdefault(setting.key, {}).setdefault(setting.default, []).append(option)
            texts.setdefault(setting.key, setting.text)
    rows = []
    for key, by_default in defaults.items():
        is_same = len(by_default) == 1 and len(next(iter(by_default.values()))) == len(options)
        shown = [
            f"`{default}`" + ("" if is_same else f" ({', '.join(names)})")
            for default, names in by_default.items()
            if default
        ]
        rows.append((key, ", ".join(shown), texts[key]))
    return rows


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    cells = [(f"`{key}`", default, text) for key, default, text in rows]
    escaped = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells]
    return ["| key | default | meaning |", "| --- | --- | --- |", *(f"| {row} |" for row in escaped)]


if __name__ == "__main__":
    sys.stdout.write(reference_page())
