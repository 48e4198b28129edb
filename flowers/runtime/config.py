"""Compose, check and convert configurations: the only module that knows Hydra's override grammar."""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """`": did you mean X?"` with the valid name nearest to `name`, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


_PACKAGE = Path(__file__).resolve().parents[1]


# Beside the package in a checkout, inside it in a wheel; absolute, since Hydra resolves a relative one from the caller.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())


# Arguments of the Trainer that the programs give, and what stands for them.
_RESERVED_TRAINER_KEYS = {
    "trainer.max_epochs": "head.epochs and finetune.epochs",
    "trainer.logger": "logger=…",
    "trainer.callbacks": "callbacks=…",
    "trainer.default_root_dir": "hydra.run.dir",
    "trainer.plugins": "trainer.precision or trainer.strategy",
    "trainer.fast_dev_run": "debug=steps",
    "trainer.enable_checkpointing": "callbacks=…",
    "trainer.enable_progress_bar": "~callbacks.progress",
    "trainer.check_val_every_n_epoch": "fewer epochs: each is validated, so that the best one can be kept",
}


# Old key: new key. An old key may be valid in another program (`photos`), so a lookup first checks that it is unknown.
RENAMED_KEYS = {
    "data.on_bad_photo": "data.on_corrupt",
    "data.patience": "data.retry_timeout",
    "data.mixed_shards": "data.shuffle_shards",
    "data.flip": "data.hflip_prob",
    "data.memory_share": "data.decoded_cache_fraction",
    "data.endpoint": "data.s3_endpoint",
    "head.views": "head.cached_views",
    "features.max_gb": "features.cache_gb",
    "callbacks.within": "callbacks.mid_epoch",
    "callbacks.pictures": "callbacks.image_logger",
    "photos": "max_listed",
    "limit": "min_agreement",
    "int8_limit": "int8_min_agreement",
    "calibration": "calibration_images",
    "predict": "predicted_runs",
    "on_bad_photo": "on_corrupt",
    "checkpoint": "run",
}


def rename_old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a training configuration from an old checkpoint under today's key names; `config` stays unchanged."""
    upgraded = {group: dict(value) if isinstance(value, dict) else value for group, value in config.items()}
    for old, new in RENAMED_KEYS.items():
        group, dot, name = old.partition(".")
        settings = upgraded.get(group)
        if dot and isinstance(settings, dict) and name in settings:
            new_name = new.partition(".")[2]
            upgraded[group] = {new_name if key == name else key: value for key, value in settings.items()}
    return upgraded


def check_overrides(overrides: Sequence[str], config_name: str) -> list[str]:
    """The overrides as Hydra shall read them: any argument of Lightning's Trainer is added under `trainer`.

    Raises ValueError, with the nearest valid name, for a group, an option or a key that there is not, and for a value
    that is no number where the configuration has one.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(f"an override is not of the form key=value: {str(error).splitlines()[0]}") from error
    own = [override for override in parsed if not override.key_or_group.startswith("hydra")]
    options = [override for override in own if (CONF / override.key_or_group).is_dir()]
    with hydra_context():
        for override in parsed:
            _check_option(override)
        base = compose(config_name, [_first_value(override) for override in options if _is_countable(override)])
    values = flatten(OmegaConf.to_container(base))
    added = [
        override.input_line for override in own if override not in options and _is_trainer_argument(override, values)
    ]
    return [f"++{line}" if line in added else line for line in overrides]


@contextmanager
def hydra_context() -> Iterator[Hydra]:
    """Hydra over this project's conf/: that of the program that runs, where one does."""
    known = GlobalHydra.instance()
    with nullcontext() if known.is_initialized() else initialize_config_dir(str(CONF), version_base="1.3"):
        assert known.hydra is not None
        yield known.hydra


def quote_override(value: object) -> str:
    """A text as a value of Hydra's override grammar, whatever characters are in it."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
    return "'" + escaped.replace("${", "\\${") + "'"


def _check_option(override: Override) -> None:
    group = override.key_or_group
    # Of Hydra's own groups also what Hydra and its plugins bring.
    options = GlobalHydra.instance().config_loader().get_group_options(group)
    for value in _override_values(override) if options else ():
        for option in value if isinstance(value, list) else [value]:
            if option is not None and str(option) not in options:
                raise ValueError(
                    f"{group}={option}: no such option{did_you_mean(str(option), options)} "
                    f"(there are {', '.join(options)})"
                )
            if group == "hydra/launcher":
                _check_launcher(str(option))


def _check_launcher(option: str) -> None:
    file = CONF / "hydra" / "launcher" / f"{option}.yaml"
    try:
        if file.exists():
            importlib.import_module(str(OmegaConf.load(file)._target_).rpartition(".")[0])
    except ModuleNotFoundError as error:
        extra = option.partition("_")[0]
        raise ValueError(f"hydra/launcher={option} needs its plugin: pip install 'flowers[{extra}]'") from error


def _is_trainer_argument(override: Override, values: dict[str, Any]) -> bool:
    """Whether the key is one of the Trainer's that the configuration does not list; other unknown keys raise."""
    key = override.key_or_group
    if override.is_add() or override.is_force_add() or override.is_delete():
        return False
    if key in values:
        if not key.startswith("trainer."):  # Lightning knows best what its arguments may be
            _check_type(override, values.get(str(values[key]).strip("${}"), values[key]))  # where it points elsewhere
        return False
    arguments = [f"trainer.{name}" for name in _trainer_arguments()] if "trainer" in values else []
    if key in _RESERVED_TRAINER_KEYS:
        raise ValueError(f"{key} is set by the project itself: give {_RESERVED_TRAINER_KEYS[key]}")
    if key in arguments:
        return True
    raise ValueError(f"{key}: no such key{_suggest_key(key, [*values, *arguments])}")


def _check_type(override: Override, valid: Any) -> None:
    group = override.key_or_group.replace(".", "/")
    for value in _override_values(override):
        if (CONF / group).is_dir() and not isinstance(value, dict):
            raise ValueError(f"{override.key_or_group}={value}: a group of settings: give {group}={value}")
        wanted = None if "${" in str(value) else _expected_type(value, valid)
        if wanted:
            raise ValueError(f"{override.key_or_group}={value}: wanted {wanted}, such as {valid}")


def _expected_type(value: Any, valid: Any) -> str | None:
    """What is wanted in place of `value`, where a valid one is `valid`; None where it will do."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(valid, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(valid, int):
        return None if is_number and isinstance(value, int) else "a whole number"
    if isinstance(valid, float):
        return None if is_number else "a number"
    if isinstance(valid, list):
        return None if isinstance(value, list) or not valid else "a list"  # where none is given: one, or a list
    if isinstance(valid, dict):
        return None if isinstance(value, dict) else "one of its keys (key.name=value)"
    return "a text" if isinstance(value, (list, dict)) else None


def _override_values(override: Override) -> Iterator[Any]:
    """The values that an override may take: one, or those of a sweep; none where they are not countable."""
    value = override.value()
    if isinstance(value, (IntervalSweep, Glob)):
        return
    if isinstance(value, Sweep) and override.is_sweep_override():
        yield from (_unquote(item) for item in override.sweep_iterator())
    else:
        yield _unquote(value)


def _unquote(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _is_countable(override: Override) -> bool:
    return not override.is_delete() and next(_override_values(override), None) is not None


def _first_value(override: Override) -> str:
    """The override itself, or of a sweep its first value."""
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.key_or_group}={next(_override_values(override))}"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a": {"b": 1}, "a.b": 1}`."""
    flat = {}
    for name, value in tree.items():
        flat[f"{prefix}{name}"] = value
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
    return flat


def _suggest_key(key: str, valid: Iterable[str]) -> str:
    """Of the keys with the same last word the nearest, else of all keys, else of the last words."""
    last_words: dict[str, str] = {}
    for name in valid:
        last_words.setdefault(name.rpartition(".")[2], name)
    word = key.rpartition(".")[2]
    if word in last_words:
        return f": did you mean {last_words[word]}?"
    near = did_you_mean(key, valid) or did_you_mean(word, last_words)
    return near.replace(word, last_words[word]) if word in near and word in last_words else near


def _trainer_arguments() -> list[str]:
    """The arguments of Lightning's Trainer, read from its source: importing it takes seconds."""
    package = importlib.util.find_spec("lightning")
    assert package is not None, "lightning is installed with this project"
    assert package.origin is not None
    source = Path(package.origin).parent / "pytorch" / "trainer" / "trainer.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            (init,) = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
            return [argument.arg for argument in init.args.kwonlyargs]
    raise AssertionError(f"no Trainer in {source}")


def require_extra(purpose: str, extra: str, *packages: str) -> None:
    """Check that the packages of an optional dependency are installed, without importing them.

    Args:
        purpose: What needs them, for the message: "a search".
        extra: The name of the extra in pyproject.toml.
        packages: Top-level modules.

    Raises:
        ValueError: One of them is missing.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{purpose} needs {', '.join(missing)}: pip install 'flowers[{extra}]'")


def to_container(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    """`cfg` as plain Python: what a checkpoint may hold and still be read without running code."""
    return {str(name): value for name, value in OmegaConf.to_container(cfg, resolve=True).items()}  # type: ignore[union-attr]
