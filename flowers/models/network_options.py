"""The options that the builder of a network declares. Those of a run may come from a stranger.

An option can say how the network is built, and no more: a builder also takes what loads weights from somewhere.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from flowers.settings.schema.run_files import are_options
from flowers.settings.suggestions import did_you_mean

# Declared by builders, but set by the program, or no matter of the architecture.
_NO_OPTIONS = {
    *("self", "args", "kwargs", "num_classes", "weights", "weights_backbone", "progress", "pretrained", "variant"),
    *("features_only", "out_indices", "block", "layers", "cfg", "arch", "model", "state_dict", "device", "dtype"),
    *("checkpoint_path", "cache_dir", "use_naflex"),
}
_DEPTH = 3  # a builder calls a function of its module, which makes the network


def declared_options(builder: Callable[..., Any]) -> set[str]:
    """Return the names of the options of a builder: its arguments, and those of what it passes the others on to.

    Functions of its module and networks that its code names count. Whether an option then fits, the network says.
    """
    return {name for name in _parameters(builder, _DEPTH) if name not in _NO_OPTIONS and "pretrained" not in name}


def _parameters(builder: Callable[..., Any], depth: int) -> Iterator[str]:
    function = inspect.unwrap(builder)
    parameters = inspect.signature(function).parameters.values()
    yield from (each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
    passes_on = any(each.kind == each.VAR_KEYWORD for each in parameters)
    if isinstance(function, type):  # a network that passes arguments on to its base class
        function = function.__init__  # type: ignore[misc]
    code, module = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None or not passes_on or not depth:
        return
    for name in code.co_names:
        called = module.get(name)
        is_network = isinstance(called, type) and issubclass(called, nn.Module)
        is_ours = inspect.isfunction(called) and called.__module__ == function.__module__
        if called is not None and (is_network or is_ours):
            yield from _parameters(called, depth - 1)


def check_options(options: Mapping[str, Any], declared: set[str]) -> None:
    """Check that options are among those that a builder declares, and that their values are plain.

    Raises:
        ValueError: One is not.
    """
    for name in options:
        if name not in declared:
            raise ValueError(
                f"no option {name}: expected an option of the network{did_you_mean(name, sorted(declared))}"
            )
    if not are_options(options):
        raise ValueError("expected plain values: numbers of at most 65,536, short texts, or lists of them")
