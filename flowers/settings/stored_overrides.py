"""Overrides that a run folder holds: a command line of somebody else, of which only plain settings may pass."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString

from flowers.runtime.text import one_line
from flowers.settings.config_reference import CONF, torchvision_classifiers
from flowers.settings.overrides import parse_overrides

# What decides about a training and names nothing that is imported, contacted or written to.
_GROUPS = (
    *("experiment", "data", "data/augmentation", "model", "optimizer", "scheduler", "loss", "mixing", "trainer"),
    "callbacks",
)
_KEYS = re.compile(
    r"(data|model|optimizer|scheduler|loss|mixing|head|finetune|features)(\.[a-z][a-z0-9_]*)+|tta|reject|seed"
    r"|callbacks\.(ema|early_stopping)\.[a-z][a-z0-9_]*"
    r"|trainer\.(accelerator|precision|deterministic|gradient_clip_(val|algorithm)|accumulate_grad_batches"
    r"|limit_(train|val)_batches|max_steps)"
)
# What a run may have that decides nothing about what it learns. It is left out.
_LEFT_OUT = re.compile(r"(logger|callbacks|hydra|trainer|debug)([./].*)?|data\.source.*|run_dir|group|resume|find_lr")
_OPTION = re.compile(r"[a-z0-9_]+")


def plain_overrides(lines: Sequence[str], source: str) -> list[str]:
    """Return the overrides that a training on other photos repeats.

    A group may take an option of conf/ of this project, and a key a plain value. Nothing in them is imported, resolved
    or contacted: an option of the working directory, a `_target_` and an interpolation are refused.

    Args:
        lines: Overrides of `flowers.train` from a file that may come from a stranger.
        source: Where they are from, for messages.

    Raises:
        ValueError: One of them is neither of these nor without influence on what is learned.
    """
    passed = []
    for override in parse_overrides(lines):
        key = override.key_or_group
        if _is_plain(override):
            passed.append(str(override.input_line))
        elif override.is_sweep_override() or not _LEFT_OUT.fullmatch(key):
            raise ValueError(
                f"{one_line(source)}: {one_line(str(override.input_line))[:200]}: expected an option of this project, "
                "or a plain value of a setting: train the parts by hand with your own settings"
            )
    return passed


def _is_plain(override: Override) -> bool:
    key, value = override.key_or_group, override.value()
    if override.is_sweep_override() or override.package is not None:
        return False
    if key in _GROUPS:
        return all(_is_own_option(key, _text(each)) for each in (value if isinstance(value, list) else [value]))
    is_setting = _KEYS.fullmatch(key) is not None and not key.startswith("data.source")
    return is_setting and not override.is_delete() and _is_plain_value(value)


def _is_own_option(group: str, option: str) -> bool:
    is_file = _OPTION.fullmatch(option) is not None and (CONF / group / f"{option}.yaml").is_file()
    return is_file or option == "null" or (group == "model" and option in torchvision_classifiers())


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_text(key)[:1] != "_" and _is_plain_value(each) for key, each in value.items())
    if isinstance(value, list):
        return all(map(_is_plain_value, value))
    return "${" not in _text(value)


def _text(value: Any) -> str:
    if isinstance(value, QuotedString):
        return str(value.text)
    return "null" if value is None else str(value)
