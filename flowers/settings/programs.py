"""The table of programs, which the command line, help, docs, completion, JSON schema and tests read.

Another package may register a program as an entry point of `flowers.programs`: its value is the settings of the program
in its module, such as "garden.count:CountSettings", and garden/conf/count.yaml has their defaults and texts.
"""

import sys
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

from flowers.settings.registry import find_parts, load_part

if TYPE_CHECKING:
    from flowers.settings.schema.values import Group  # pydantic takes 0.2 s

_TRAINING, _OTHERS = "flowers.settings.schema.training:", "flowers.settings.schema.programs:"


class Program(NamedTuple):
    """A program.

    Attributes:
        name: `flowers NAME` runs it; its settings are in conf/NAME.yaml.
        module: `python -m MODULE` runs it: its function `main`.
        settings: The type of its settings, "module:name"; empty if it has a command line of its own.
        text: What it does; empty if conf/NAME.yaml says so.
        is_installed: Whether `flowers NAME` finds it, and not only `python -m`.
    """

    name: str
    module: str
    settings: str = ""
    text: str = ""
    is_installed: bool = True


_OURS = (
    Program("train", "flowers.train", f"{_TRAINING}TrainSettings"),
    Program("evaluate", "flowers.evaluate", f"{_OTHERS}EvaluateSettings"),
    Program("audit", "flowers.audit", f"{_OTHERS}AuditSettings"),
    Program("compare", "flowers.compare", f"{_OTHERS}CompareSettings"),
    Program("predict", "flowers.predict", f"{_OTHERS}PredictSettings"),
    Program("explain", "flowers.explain", f"{_OTHERS}ExplainSettings"),
    Program("export", "flowers.export", f"{_OTHERS}ExportSettings"),
    Program("app", "flowers.app", f"{_OTHERS}AppSettings"),
    Program("sweep", "flowers.sweep", f"{_OTHERS}SweepSettings"),
    Program("ablation", "flowers.ablation", f"{_OTHERS}AblationSettings"),
    Program("soup", "flowers.soup", f"{_OTHERS}SoupSettings"),
    Program("probe", "flowers.probe", f"{_OTHERS}ProbeSettings"),
    Program("learning_curve", "flowers.learning_curve", f"{_OTHERS}LearningCurveSettings"),
    Program("suggest", "flowers.suggest", f"{_OTHERS}SuggestSettings"),
    Program("pack", "flowers.pack", f"{_OTHERS}PackSettings"),
    Program("schema", "flowers.schema", text="Print JSON schemas of the files in conf/, for editors"),
    Program("new-experiment", "flowers.new_experiment", text="Write a short, commented experiment file to edit"),
    Program("complete", "flowers.complete", text="Complete commands in bash and zsh: --help says how to set it up"),
)
PROGRAMS: Mapping[str, Program] = {each.name: each for each in _OURS}
CONFIGURED = tuple(each.name for each in _OURS if each.settings)  # those with a file in conf/


def all_programs() -> dict[str, Program]:
    """Return the programs of the project and of other packages, by name. Nothing is imported."""
    others = {
        name: Program(name, entry.module, entry.value, is_installed=entry.dist is not None)
        for name, entry in find_parts("programs").items()
    }
    return {**PROGRAMS, **{name: each for name, each in others.items() if name not in PROGRAMS}}


def settings_type(name: str) -> "type[Group]":
    """Import the type of the settings of a program.

    Raises:
        ValueError: There is no such program, or it cannot be imported.
    """
    found: type[Group]
    if name in CONFIGURED:
        found = resolve_name(PROGRAMS[name].settings)
        return found
    if name not in (registered := find_parts("programs")):
        raise ValueError(f"{name}: no such program: expected one of {', '.join(CONFIGURED)}")
    found = load_part(registered[name], PROGRAMS)
    return found


def program_of(settings: type) -> str:
    """Return the name of the program with these settings.

    Raises:
        ValueError: There is none.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    module = main.name if settings.__module__ == "__main__" and main is not None else settings.__module__
    name = settings.__qualname__
    candidates = [each for each in all_programs().values() if each.settings.endswith(f":{name}")]
    found = [each.name for each in candidates if each.settings == f"{module}:{name}"]
    # The module of a program may import them from another one.
    found = found or [each.name for each in candidates if settings_type(each.name) is settings]
    if not found:
        raise ValueError(f"{module}:{name}: no program with these settings: see flowers.programs in CONTRIBUTING.md")
    return found[0]
