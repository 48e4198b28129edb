"""Compose plain settings without Hydra: a prediction then starts half a second earlier.

Only what means the same to any reader of YAML is taken: a program without groups, and keys of its file with a word, a
path, a number, true, false or null. For all else there is Hydra, in `flowers.settings.config`.
"""

import re
from collections.abc import Sequence
from typing import Any

from flowers.runtime.files import read_yaml
from flowers.settings.config_reference import CONF
from flowers.settings.programs import settings_type
from flowers.settings.validation import text_keys

_LINE = re.compile(r"([a-z_]+)=([A-Za-z0-9_./-]+)")
_WORD = re.compile(r"(?:\.{0,2}/)?[A-Za-z_][A-Za-z0-9_./-]*|\.{0,2}/|\.{1,2}")
_NOT_WORDS = ("null", "true", "false", "nan", "inf")
_INTEGER, _DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,8}"), re.compile(r"-?(0|[1-9][0-9]{0,8})\.[0-9]{1,9}")
_CONSTANTS = {"null": None, "true": True, "false": False}


def plain_values(program: str, overrides: Sequence[str]) -> dict[str, Any] | None:
    """Return the settings of a program of this project by key, as Hydra would compose them.

    Args:
        program: Its name.
        overrides: Of the command line.

    Returns:
        The values, which are not checked; None if Hydra is needed, also to answer a mistake.
    """
    matches = [match for line in overrides if (match := _LINE.fullmatch(line))]
    if len(matches) < len(overrides):  # before the file is read, which takes longer for a training
        return None
    path = CONF / f"{program}.yaml"
    content = read_yaml(path) if path.is_file() else {}
    if content.pop("defaults", None) != ["program", "_self_"]:
        return None
    for match in matches:
        if match[1] not in content or isinstance(content[match[1]], dict):
            return None
        try:
            value = _read_value(match[2])
        except ValueError:
            return None
        if isinstance(value, (bool, int, float)) and match[1] in text_keys(settings_type(program)):
            return None  # a text such as 2024
        content[match[1]] = value
    return None if "???" in content.values() or "${" in str(content) else content


def _read_value(text: str) -> object:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    if _WORD.fullmatch(text) and text.lower() not in _NOT_WORDS:
        return text
    raise ValueError
