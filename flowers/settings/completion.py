"""Complete the words of a command line. No import takes long: the answer comes at each press of the TAB key."""

from collections.abc import Sequence

from flowers.settings.config_reference import (
    CONF,
    Setting,
    options_of,
    read_config_file,
    settings_of,
    torchvision_classifiers,
)
from flowers.settings.programs import all_programs

_FLAGS = ("--help", "--cfg", "--multirun", "-m")
_TRAINING_SETTINGS = ("sweep", "ablation")  # programs that pass the settings of flowers.train on


def complete(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Return what the last word may become.

    A key is completed up to its next dot, or to its `=`. After the `=` come the options of a group, the values of a
    key if they can be listed, or else its default.

    Args:
        words: The words of the command line after `flowers`, the last one perhaps unfinished or empty.
        commands: What the first word may be.
    """
    *before, word = words
    if not before:
        return [each for each in commands if each.startswith(word)]
    if not (known := all_programs().get(before[0])) or not known.settings:
        return []
    if word.startswith("-"):
        return [each for each in _FLAGS if each.startswith(word)]
    sign = word[: len(word) - len(word.lstrip("+~"))]
    key, has_value, value = word.removeprefix(sign).partition("=")
    settings, groups = _known(before)
    if not has_value:
        dot = len(key) - len(key.rpartition(".")[2])  # of what is typed
        keys = [f"{each}=" for each in [*settings, *groups]]
        ends = [each.find(".", dot) + 1 or len(each) for each in keys]
        found = dict.fromkeys(each[:end] for each, end in zip(keys, ends, strict=True) if each.startswith(key))
        return sorted(f"{sign}{each.rstrip('=') if sign == '~' else each}" for each in found)
    if key in groups:
        more = torchvision_classifiers() if key == "model" else []
        values = sorted({*options_of(key), *more, "null"})
    elif key in settings:
        values = _choices(before[0], key) or _default(settings[key])
    else:
        values = []
    return [f"{sign}{key}={each}" for each in values if each.startswith(value)]


def _known(before: Sequence[str]) -> tuple[dict[str, Setting], dict[str, str]]:
    """Return the settings and the groups of a command, each group with its option."""
    program, *overrides = before
    programs = [program, *(["train"] if program in _TRAINING_SETTINGS else [])]
    groups = {group: option for each in programs for group, option in read_config_file(each).options.items()}
    given = [each.lstrip("+").partition("=") for each in overrides]
    chosen = {key: value for key, _, value in given if (CONF / key).is_dir()}
    for group in ("experiment", "debug"):
        if chosen.get(group) in options_of(group):
            groups |= read_config_file(f"{group}/{chosen[group]}").overridden
    groups |= chosen
    for group, option in list(groups.items()):
        if option in options_of(group):
            nested = read_config_file(f"{group}/{option}").options
            groups |= {f"{group}/{name}": each for name, each in nested.items() if f"{group}/{name}" not in groups}
    if program == "train":
        groups["hydra/launcher"] = ""
    settings = {each.key: each for name in programs for each in settings_of(name)}
    for group, option in groups.items():
        if option in options_of(group):
            settings |= {each.key: each for each in settings_of(f"{group}/{option}")}
    return settings, groups


def _choices(program: str, key: str) -> list[str]:
    """Return the values of a key, if they can be listed: one of several words, or true and false."""
    from flowers.settings.validation import listed_values  # pydantic takes 0.2 s

    programs = [program, *(["train"] if program in _TRAINING_SETTINGS else [])]
    return next((values for each in programs if (values := listed_values(each, key))), [])


def _default(setting: Setting) -> list[str]:
    default = setting.default.strip("'\"")
    return [] if not default or any(mark in default for mark in ("${", "?", " ", "null")) else [default]


def completions(line: str, word: str, commands: Sequence[str]) -> list[str]:
    """Return the completions of a line as bash expects them from `complete -C`.

    Args:
        line: The command line up to the cursor.
        word: The part of the last word that bash replaces: what follows `=`, unless the user changed COMP_WORDBREAKS.
        commands: See `complete`.
    """
    words = line.split()[1:] + ([""] if line[-1:].isspace() else [])
    cut = len(words[-1]) - len(word) if words else 0
    return [each[cut:] for each in complete(words or [""], commands)]
