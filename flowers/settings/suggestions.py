"""The valid name that a mistyped one most likely means."""

import difflib
import shlex
from collections.abc import Collection, Iterable

from flowers.settings.other_tools import our_overrides, why_needless


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `": did you mean X?"` for the valid name nearest to `name`, or an empty string if none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def suggest_key(key: str, valid: Collection[str], value: str | None = None) -> str:
    """Suggest what a key means in other tools, a key with the same last word, or the nearest one."""
    if meant := our_overrides(key, value, valid):
        return f": did you mean {shlex.join(meant)}?"
    names = [name for name in valid if not key.startswith(f"{name}.")]
    last_words: dict[str, str] = {}
    for name in names:
        last_words.setdefault(name.rpartition(".")[2], name)
    word = key.rpartition(".")[2]
    if word in last_words:
        return f": did you mean {last_words[word]}?"
    if reason := why_needless(key):
        return f": {reason}"
    if near := did_you_mean(key, names):
        return near
    close = difflib.get_close_matches(word, list(last_words), n=1, cutoff=0.5)
    return f": did you mean {last_words[close[0]]}?" if close else ""
