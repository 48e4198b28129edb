"""Compose, check and convert configurations: the only module that knows Hydra's override grammar."""

import ast
import difflib
import importlib.util
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from flowers.runtime.config_reference import CONF as CONF

# Arguments of the Trainer that the program sets itself, and what to give instead.
_RESERVED_TRAINER_KEYS = {
    "trainer.max_epochs": "head.epochs and finetune.epochs",
    "trainer.logger": "logger=…",
    "trainer.callbacks": "callbacks=…",
    "trainer.default_root_dir": "hydra.run.dir",
    "trainer.plugins": "trainer.precision or trainer.strategy",
    "trainer.fast_dev_run": "debug=steps",
    "trainer.enable_checkpointing": "callbacks=…",
    "trainer.enable_progress_bar": "~callbacks.progress",
    "trainer.check_val_every_n_epoch": "fewer epochs: the best epoch is found by validating each of them",
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


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `": did you mean X?"` for the valid name nearest to `name`, or an empty string if none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def load_config(overrides: Sequence[str] = (), name: str = "train") -> DictConfig:
    """Compose a configuration in Python as the command line does: `load_config(["experiment=quickstart"])`.

    A training configuration gets a new run folder, `outputs/<date>/<time>`, unless `run_dir=FOLDER` is given.

    Args:
        overrides: As on the command line, such as "model=resnet18" or "head.epochs=3".
        name: The program.

    Raises:
        ValueError: An override is wrong, or has several values.
    """
    checked = check_overrides(overrides, name)
    if several := [each.input_line for each in _parse(overrides) if each.is_sweep_override()]:
        raise ValueError(f"{several[0]}: expected one value; only -m on the command line runs several")
    with hydra_context():
        cfg = compose(name, checked)
    if "run_dir" in cfg and not any(each.key_or_group == "run_dir" for each in _parse(overrides)):
        cfg.run_dir = str(_new_run_dir())
    return cfg


def _new_run_dir() -> Path:
    base = Path(time.strftime("outputs/%Y-%m-%d/%H-%M-%S")).resolve()
    candidates = (base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 1000)))
    folder = next(folder for folder in candidates if not folder.exists())
    folder.mkdir(parents=True)  # so that the next call in the same second gets another one
    return folder


def check_overrides(overrides: Sequence[str], config_name: str) -> list[str]:
    """Check overrides of the command line, and return them as Hydra expects them.

    Hydra refuses a key that the configuration lacks, unless it starts with `+`. Arguments of Lightning's Trainer under
    `trainer` get this sign here.

    Raises:
        ValueError: A group, an option or a key does not exist, or a value has the wrong type. The message names the
            nearest valid name, or the type.
    """
    parsed = _parse(overrides)
    own = [override for override in parsed if not override.key_or_group.startswith("hydra")]
    options = [override for override in own if (CONF / override.key_or_group).is_dir()]
    with hydra_context():
        for override in parsed:
            _check_option(override)
        base = compose(config_name, [_first_value(override) for override in options if _has_values(override)])
    values = flatten(OmegaConf.to_container(base))
    keys = [override for override in own if override not in options]
    for override in keys:
        _check_renamed(override.key_or_group, values)
    added = [override.input_line for override in keys if _is_trainer_argument(override, values)]
    return [f"++{line}" if line in added else line for line in overrides]


@contextmanager
def hydra_context() -> Iterator[Any]:
    """Yield a Hydra instance that reads conf/: that of the running program, or else a new one for the block."""
    singleton = GlobalHydra.instance()
    running = singleton.hydra
    if running and any(str(CONF) in entry.path for entry in running.config_loader.get_search_path().get_path()):
        yield running
        return
    singleton.clear()  # a notebook may have initialized Hydra for another project
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield GlobalHydra.instance().hydra
    finally:
        singleton.hydra = running
        GlobalHydra.set_instance(singleton)


def quote_override(value: object) -> str:
    """Return `value` as a quoted string of Hydra's override grammar, whatever characters it contains."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), str(value))
    return "'" + escaped.replace("${", "\\${") + "'"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: `{"a": {"b": 1}}` becomes `{"a": {"b": 1}, "a.b": 1}`."""
    flat = {}
    for name, value in tree.items():
        flat[f"{prefix}{name}"] = value
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
    return flat


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(f"an override is not of the form key=value: {str(error).splitlines()[0]}") from error


def _check_option(override: Override) -> None:
    group = override.key_or_group
    # The loader also knows the options that Hydra and its plugins bring.
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


def _check_renamed(key: str, values: dict[str, Any]) -> None:
    for old, new in RENAMED_KEYS.items():
        if (key == old or key.startswith(f"{old}.")) and old not in values and new in values:
            raise ValueError(f"{key} is now {new}{key.removeprefix(old)}")


def _is_trainer_argument(override: Override, values: dict[str, Any]) -> bool:
    """Return whether the key is an argument of the Trainer that the configuration does not list.

    Raises:
        ValueError: The key does not exist, or its value has the wrong type.
    """
    key = override.key_or_group
    if override.is_add() or override.is_force_add() or override.is_delete():
        return False
    if key in values:
        if not key.startswith("trainer."):  # the Trainer checks its arguments itself
            _check_type(override, values.get(str(values[key]).strip("${}"), values[key]))  # follows a reference
        return False
    if key in _RESERVED_TRAINER_KEYS:
        raise ValueError(f"{key} is set by the program: give {_RESERVED_TRAINER_KEYS[key]}")
    arguments = [f"trainer.{name}" for name in trainer_arguments()] if "trainer" in values else []
    if key in arguments:
        return True
    raise ValueError(f"{key}: no such key{_suggest_key(key, [*values, *arguments])}")


def _check_type(override: Override, valid: Any) -> None:
    key = override.key_or_group
    group = key.replace(".", "/")
    for value in _override_values(override):
        if (CONF / group).is_dir() and not isinstance(value, dict):
            raise ValueError(f"{key}={value}: {key} is a group of settings: give {group}={value}")
        expected = None if "${" in str(value) else _expected_type(value, valid)
        if expected:
            raise ValueError(f"{key}={value}: expected {expected}, such as {valid}")


def _expected_type(value: Any, valid: Any) -> str | None:
    """Return which type is expected instead of `value`, given a valid value; None if the type is right."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(valid, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(valid, int):
        return None if is_number and isinstance(value, int) else "a whole number"
    if isinstance(valid, float):
        return None if is_number else "a number"
    if isinstance(valid, list):
        return None if isinstance(value, list) or not valid else "a list"  # an empty default: one value or a list
    if isinstance(valid, dict):
        return None if isinstance(value, dict) else "one of its keys (key.name=value)"
    return "a text" if isinstance(value, (list, dict)) else None


def _override_values(override: Override) -> Iterator[Any]:
    """Yield the values of an override: one, or those of a sweep; none for an interval or a glob."""
    value = override.value()
    if isinstance(value, (IntervalSweep, Glob)):
        return
    is_sweep = isinstance(value, Sweep) and override.is_sweep_override()
    for each in override.sweep_iterator() if is_sweep else [value]:
        yield each.text if isinstance(each, QuotedString) else each


def _has_values(override: Override) -> bool:
    return not override.is_delete() and next(_override_values(override), None) is not None


def _first_value(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.key_or_group}={next(_override_values(override))}"


def _suggest_key(key: str, valid: Iterable[str]) -> str:
    """Suggest a key with the same last word, else the nearest key, else the key with the nearest last word."""
    last_words: dict[str, str] = {}
    for name in valid:
        last_words.setdefault(name.rpartition(".")[2], name)
    word = key.rpartition(".")[2]
    if word in last_words:
        return f": did you mean {last_words[word]}?"
    if near := did_you_mean(key, valid):
        return near
    close = difflib.get_close_matches(word, list(last_words), n=1, cutoff=0.5)
    return f": did you mean {last_words[close[0]]}?" if close else ""


def trainer_arguments() -> list[str]:
    """Return the arguments of Lightning's Trainer, read from its source: to import it takes seconds."""
    package = importlib.util.find_spec("lightning")
    assert package is not None, "lightning is installed with this project"
    assert package.origin is not None
    source = Path(package.origin).parent / "pytorch" / "trainer" / "trainer.py"
    (trainer,) = (
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
    )
    (init,) = (node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return [argument.arg for argument in init.args.kwonlyargs]


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
    """Return `cfg` as plain Python, resolved: a checkpoint with it loads without running code."""
    return {str(name): value for name, value in OmegaConf.to_container(cfg, resolve=True).items()}  # type: ignore[union-attr]
