"""Texts on the command line stay as they are typed: a path may hold any character, and `2024_11_30` is no number."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override, QuotedString

from flowers.settings.config_reference import CONF
from flowers.settings.overrides import parse_overrides, quote_override
from flowers.settings.programs import settings_type
from flowers.settings.schema.values import expand_home
from flowers.settings.validation import TextKey, text_keys

# Keys of Hydra itself, which no schema of ours has.
_HYDRA_KEYS = {key: TextKey(is_path=True, is_list=False, is_text=True) for key in ("hydra.run.dir", "hydra.sweep.dir")}
_HYDRA_KEYS["hydra.sweep.subdir"] = TextKey(is_path=False, is_list=False, is_text=True)

_OPEN = ("hydra", "trainer.", "model.options.")  # keys that no schema lists

_LINE = re.compile(r"(\+{0,2}([A-Za-z_][\w./]*)=)(.*)", re.DOTALL)
# What has a meaning in Hydra's grammar beside the characters that it refuses. Where such a path exists, it is a path.
_GRAMMAR = re.compile(r"""[$'",\[\]\\]|^(null|.*\(.*\))$""", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_SWEEP = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list)\(.*\)", re.DOTALL)


def literal_overrides(overrides: Sequence[str], programs: Sequence[str], sweeps: bool = False) -> list[str]:
    """Return overrides as Hydra needs them to take each text and each path as it was typed.

    `null` and a value in Hydra's quotes keep their meaning, `${…}` refers to another key, and `[a,b]` is a list where a
    key takes one; but what exists as a path is that path. `~` becomes the home folder.

    Args:
        overrides: As typed.
        programs: The programs whose keys they set.
        sweeps: Whether commas separate the values of a sweep; else a path may hold them.
    """
    keys = dict(_HYDRA_KEYS)
    for program in programs:
        keys |= text_keys(settings_type(program))
    return [_literal(line, keys, sweeps) for line in overrides]


def _literal(line: str, keys: dict[str, TextKey], sweeps: bool) -> str:
    match = _LINE.fullmatch(line)
    if match is None:
        return line
    start, key, value = match.groups()
    if key in keys:
        return start + _literal_value(value, keys[key], sweeps)
    if (CONF / key).is_dir() and isinstance(_parsed_value(value), (bool, int, float)):
        return start + quote_override(value)  # an option such as 2024_11_30
    if not key.startswith(_OPEN) and not _parses(value):
        return start + quote_override(value)  # of an unknown key, which is answered with the right one
    return line


def _literal_value(value: str, key: TextKey, sweeps: bool) -> str:
    if key.is_path and _is_there(value):
        return quote_override(expand_home(value)) if key.is_text else value
    if value in ("", "null") or _QUOTED.fullmatch(value) or (_SWEEP.fullmatch(value) and sweeps):
        return value
    parts = list(_split(value))
    if len(parts) > 1 and (sweeps or not key.is_path):
        return ",".join(_literal_value(part.strip(), key, sweeps) for part in parts) if sweeps else value
    if key.is_list and value[0] == "[" and value[-1] == "]":
        item = TextKey(key.is_path, is_list=False, is_text=True)
        items = [_literal_value(part.strip(), item, sweeps=False) for part in _split(value[1:-1])]
        return f"[{','.join(items)}]"
    if not key.is_text or ("${" in value and _parses(value)):
        return value
    if "\\" in value and isinstance(text := _parsed_value(value), str) and Path(text).exists():
        return value  # escaped for Hydra
    text = expand_home(value) if key.is_path else value
    return text if _parsed_value(text) == text else quote_override(text)


def _is_there(value: str) -> bool:
    """Return whether a path, or a folder on its way, has characters of Hydra's grammar in its name and exists."""
    path = Path(value)
    try:
        return bool(value) and any(
            _GRAMMAR.search(part.name) and os.path.lexists(part) for part in (path, *path.parents)
        )
    except ValueError:  # a null byte
        return False


def _split(value: str) -> Iterator[str]:
    """Yield the parts between the commas of a value that are not in quotes or brackets."""
    depth = start = at = 0
    while at < len(value):
        quoted = _QUOTED.match(value, at) if at == start or value[at - 1] in ",[ " else None
        if quoted:
            at = quoted.end()
            continue
        depth += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(value[at], 0)
        if value[at] == "," and depth <= 0:
            yield value[start:at]
            start = at + 1
        at += 1
    yield value[start:]


def _parsed(value: str) -> Override | None:
    try:
        return parse_overrides([f"key={value}"])[0]
    except ValueError:
        return None


def _parses(value: str) -> bool:
    return _parsed(value) is not None


def _parsed_value(value: str) -> object:
    """Return the value that Hydra reads; None if it cannot, or if it is a sweep."""
    override = _parsed(value)
    if override is None or override.is_sweep_override():
        return None
    read = override.value()
    return read.text if isinstance(read, QuotedString) else read
