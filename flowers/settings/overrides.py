"""Hydra's override grammar: check the names in overrides, and take overrides apart. No other module knows it."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep, Sweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from flowers.runtime.extras import install_command
from flowers.runtime.text import one_line
from flowers.settings.config_reference import (
    CONF,
    REGISTERED_GROUPS,
    config_folders,
    option_files,
    options_of,
    read_config_file,
    registered_options,
    torchvision_classifiers,
)
from flowers.settings.other_tools import our_option
from flowers.settings.registry import check_part, find_parts
from flowers.settings.renamed_keys import RENAMED_KEYS
from flowers.settings.suggestions import did_you_mean, suggest_key

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
    "trainer.min_epochs": "head.epochs and finetune.epochs",
    "trainer.min_steps": "head.epochs and finetune.epochs",
    "trainer.check_val_every_n_epoch": "fewer epochs: the best epoch is found by validating each of them",
}

_DECIMAL_COMMA = re.compile(r"0,\d{2,}|\d+,0\d*")
_SEARCH_PATH = "hydra.searchpath"
_COMPOSED_JOBS = 16  # choices of options that are kept
_composed = WeakKeyDictionary[Any, dict[tuple[str, ...], DictConfig]]()  # of each loader of Hydra

# Groups whose keys are not listed: they are arguments of the function that `model.architecture` names.
_OPEN_GROUPS = ("model.options",)


def check_overrides(overrides: Sequence[str], config_name: str) -> list[str]:
    """Check the names in overrides of the command line, and return them as Hydra expects them.

    Hydra refuses a key that the configuration lacks, unless it starts with `++`. Arguments of Lightning's Trainer under
    `trainer`, and keys of the open group `model.options`, get this sign here. `compose_checked` checks the values.

    Raises:
        ValueError: A group, an option or a key does not exist. The message names the nearest valid name.
    """
    parsed = parse_overrides(overrides)
    options = [each for each in parsed if _is_option(each, config_name)]
    with hydra_context():
        folders = _searched_folders(parsed)
        for override in parsed:
            if override in options or override.is_hydra_override():
                _check_option(override, folders)
        lines = [single_overrides(override) for override in options if not override.is_delete()]
        path = [str(each.input_line) for each in parsed if each.key_or_group == _SEARCH_PATH]
        given = [each[0] for each in lines if each and not each[0].endswith("=null")]
        base = _composed_options(config_name, [*path, *given])
    _check_root(options, overrides)
    return _check_keys(parsed, base, config_name)


def compose_checked(overrides: Sequence[str], config_name: str) -> tuple[list[str], DictConfig]:
    """Check the names in the overrides of a single run and compose its configuration, within `hydra_context`.

    Hydra composes once, with the options alone: which keys there are follows from them. It then gets the keys.

    Returns:
        What `check_overrides` returns, and the configuration with Hydra's own group.

    Raises:
        ValueError: See `check_overrides`; or an override has several values.
        HydraException: Hydra cannot compose them.
    """
    parsed = parse_overrides(overrides)
    options = [each for each in parsed if _is_option(each, config_name) or each.is_hydra_override()]
    folders = _searched_folders(parsed)
    for override in options:
        _check_option(override, folders)
    first = [line for each in options for line in single_overrides(each)[:1]]
    base = _composed_options(config_name, first)
    _check_root(options, overrides)
    checked = _check_keys(parsed, base, config_name)
    for each in parsed:
        if each.is_sweep_override():
            key, _, values = str(each.input_line).partition("=")
            number = f"; {key}={values.replace(',', '.')} is one number" * bool(_DECIMAL_COMMA.fullmatch(values))
            raise ValueError(
                f"{key}={values}: expected one value: -m runs each of them, and {key}=[{values}] is a list{number}"
            )
    return checked, compose_once(checked, config_name)


def compose_once(overrides: Sequence[str], config_name: str) -> DictConfig:
    """Compose the configuration of a single run, with Hydra's own group, within `hydra_context`.

    Args:
        overrides: From `check_overrides`.
        config_name: The program.

    Raises:
        HydraException: Hydra cannot compose it.
    """
    parsed = parse_overrides(overrides)
    own = [each for each in parsed if not each.is_hydra_override()]
    keys = [each for each in own if not _is_option(each, config_name)]
    cfg = _composed_options(config_name, [str(each.input_line) for each in parsed if each not in keys])
    _apply_keys(keys, own, cfg)
    return cfg


def _composed_options(config_name: str, options: Sequence[str]) -> DictConfig:
    """Return what Hydra composes from options and its own keys: a copy of what it composed first within the block."""
    composed = _composed.setdefault(GlobalHydra.instance().config_loader(), {})
    key = (config_name, *options)
    if key not in composed:
        while len(composed) >= _COMPOSED_JOBS:
            del composed[next(iter(composed))]
        composed[key] = compose(config_name, list(options), return_hydra_config=True)
    return composed[key].copy()


def _apply_keys(keys: Sequence[Override], own: Sequence[Override], cfg: DictConfig) -> None:
    """Set keys in what Hydra has composed from the options, and record all overrides but those of Hydra, `own`."""
    ConfigLoaderImpl._apply_overrides_to_config(list(keys), cfg)
    cfg.hydra.overrides.task = [each.input_line for each in own]
    cfg.hydra.job.override_dirname = get_overrides_dirname(list(own), **cfg.hydra.job.config.override_dirname)


@contextmanager
def composes_jobs_once() -> Iterator[None]:
    """Have Hydra compose jobs of a multirun once for each choice of options: the keys of a job are then set in a copy.

    Hydra composes each job twice, to check it and to run it, for 0.2 s each time. A copy takes a tenth of that.
    """
    patched: Any = ConfigLoaderImpl
    compose_job, composed = patched.load_sweep_config, dict[tuple[str, ...], DictConfig]()

    def load_sweep_config(
        loader: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        own = OverridesParser.create().parse_overrides(list(sweep_overrides))
        keys = [each for each in own if _is_key(each, loader)]
        options = tuple(str(each.input_line) for each in own if each not in keys)
        if options not in composed:
            while len(composed) >= _COMPOSED_JOBS:
                del composed[next(iter(composed))]
            composed[options] = compose_job(loader, master_config, [*options])
        cfg = composed[options].copy()
        _apply_keys(keys, [each for each in own if not each.is_hydra_override()], cfg)
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    patched.load_sweep_config = load_sweep_config
    try:
        yield
    finally:
        patched.load_sweep_config = compose_job


def _is_key(override: Override, loader: ConfigLoaderImpl) -> bool:
    """Return whether an override sets a key, as Hydra sees it, and the key is none of Hydra's own."""
    is_group = loader.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
    return not is_group and not override.is_hydra_override()


def _is_option(override: Override, config_name: str) -> bool:
    """Return whether an override chooses an option of a group that the program has."""
    groups = {group.partition("/")[0] for group in read_config_file(config_name).options}
    group = override.key_or_group
    return group.partition("/")[0] in groups and (CONF / group).is_dir() and not override.is_hydra_override()


def _check_keys(parsed: Sequence[Override], base: DictConfig, config_name: str) -> list[str]:
    """Check the keys of overrides against what their options compose, and return the lines as Hydra expects them."""
    container = OmegaConf.to_container(base)
    assert isinstance(container, dict)
    values = flatten({name: value for name, value in container.items() if name != "hydra"})
    keys = [each for each in parsed if not _is_option(each, config_name) and not each.is_hydra_override()]
    for override in keys:
        _check_renamed(override.key_or_group, values)
    added = [override for override in keys if _must_be_added(override, values)]
    return [f"++{str(each.input_line).lstrip('+')}" if each in added else str(each.input_line) for each in parsed]


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
    return "'" + escape_interpolations(escaped) + "'"


def escape_interpolations(text: str) -> str:
    """Return a text that OmegaConf resolves to `text`: a backslash hides `${`, those before it are doubled."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: `{"a": {"b": 1}}` becomes `{"a": {"b": 1}, "a.b": 1}`."""
    flat = {}
    for name, value in tree.items():
        flat[f"{prefix}{name}"] = value
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
    return flat


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides.

    Raises:
        ValueError: One of them is not of Hydra's grammar.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(f"an override is not of the form key=value: {str(error).splitlines()[0]}") from error


def _searched_folders(parsed: Sequence[Override]) -> list[Path]:
    """Return the folders that `hydra.searchpath` adds to those of options.

    Raises:
        ValueError: There is no such folder.
    """
    given = [each.value() for each in parsed if each.key_or_group == _SEARCH_PATH]
    entries = [str(entry) for value in given for entry in (value if isinstance(value, list) else [value])]
    folders = [Path(entry.removeprefix("file://")) for entry in entries if not entry.startswith("pkg://")]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise ValueError(
            f"{_SEARCH_PATH}: no folder {one_line(missing[0])}: expected one such as conf/, with options in it"
        )
    return folders


def _check_option(override: Override, folders: Sequence[Path]) -> None:
    group = override.key_or_group
    # The loader also knows the options that Hydra and its plugins bring.
    options = GlobalHydra.instance().config_loader().get_group_options(group)
    if options:
        options = [*options, *(path.stem for folder in folders for path in sorted((folder / group).glob("*.yaml")))]
    for value in _override_values(override) if options else ():
        for option in value if isinstance(value, list) else [value]:
            if option is None and "none" in options:
                raise ValueError(f"{group}=null: give {group}=none")
            if option is not None and str(option) not in options:
                if meant := our_option(group, str(option)):
                    raise ValueError(f"{group}={option}: no such option: did you mean {shlex.join(meant)}?")
                files = options_of(group) or options
                more = ", and any other classifier of torchvision" if group == "model" else ""
                raise ValueError(
                    f"{group}={option}: no such option{did_you_mean(str(option), options)} "
                    f"(there are {', '.join(files)}{more})"
                )
            if option in registered_options(group) - option_files(group):
                check_part(find_parts(REGISTERED_GROUPS[group])[str(option)])
            if group == "hydra/launcher":
                _check_launcher(str(option))


def _check_root(options: Sequence[Override], overrides: Sequence[str]) -> None:
    """Raise ValueError if a folder is missing, and the photos of another dataset would be downloaded to it."""
    root = last_value(overrides, "data.root")
    if not root or "${" in root:
        return
    if not any(each.key_or_group == "data" for each in options) and not Path(root).expanduser().exists():
        raise ValueError(
            f"data.root={root}: no such folder: expected one subfolder of photos per class, and data=folder; "
            "data=flower_photos downloads the photos of the report to it"
        )


def _check_launcher(option: str) -> None:
    file = CONF / "hydra" / "launcher" / f"{option}.yaml"
    try:
        if file.exists():
            importlib.import_module(str(OmegaConf.load(file)._target_).rpartition(".")[0])
    except ModuleNotFoundError as error:
        extra = option.partition("_")[0]
        raise ValueError(f"hydra/launcher={option} needs its plugin: {install_command(extra)}") from error


def _check_renamed(key: str, values: dict[str, Any]) -> None:
    for old, new in RENAMED_KEYS.items():
        if (key == old or key.startswith(f"{old}.")) and old not in values and new in values:
            raise ValueError(f"{key} is now {new}{key.removeprefix(old)}")


def _must_be_added(override: Override, values: Mapping[str, Any]) -> bool:
    """Return whether the configuration does not list a valid key, which Hydra then only takes with `++`.

    Raises:
        ValueError: The key does not exist, or is not for users; or an option of a group is given as a key.
    """
    key = override.key_or_group
    if key in _RESERVED_TRAINER_KEYS and "trainer" in values:
        raise ValueError(f"{key} is set by the program: give {_RESERVED_TRAINER_KEYS[key]}")
    if override.is_delete():
        if "${" in str(values.get(key, "")) and not isinstance(values[key], dict):
            raise ValueError(f"~{key}: cannot be left out: it follows another setting, {values[key]}")
        return False
    group = key.replace(".", "/")
    if (
        (CONF / group).is_dir()
        and ("/" in group or key in values)
        and not all(isinstance(value, dict) for value in _override_values(override))
    ):
        value = next(value for value in _override_values(override) if not isinstance(value, dict))
        option = value if value or "none" not in options_of(group) else "none"
        raise ValueError(f"{key}={value}: {key} is a group of settings: give {group}={option}")
    if any(key == name or key.startswith(f"{name}.") for name in _OPEN_GROUPS if name in values):
        return True
    if key in values:
        return False
    is_added = override.is_add() or override.is_force_add()
    arguments = [f"trainer.{name}" for name in trainer_arguments()] if "trainer" in values else []
    if key in arguments:
        return True
    if is_added and not key.startswith("trainer."):  # the schema knows which keys may be added
        return False
    value = override.value()
    text = value if isinstance(value, str) else str(override.input_line).partition("=")[2]
    raise ValueError(f"{key}: no such key{suggest_key(key, [*values, *arguments], text)}")


def _override_values(override: Override) -> list[Any]:
    """Return the values of an override: one, or those of a sweep, of an interval its ends; none for a glob."""
    value: Any = override.value()
    if isinstance(value, Glob):
        return []
    if isinstance(value, IntervalSweep):
        return [value.start, value.end]
    is_sweep = isinstance(value, Sweep) and override.is_sweep_override()
    values = list(override.sweep_iterator()) if is_sweep else [value]
    return [each.text if isinstance(each, QuotedString) else each for each in values]


def single_overrides(override: Override) -> list[str]:
    """Return an override once for each of its values; of a range or an interval, for its ends; none for a glob."""
    if override.is_delete() or not override.is_sweep_override():
        return [str(override.input_line)]
    value: Any = override.value()
    if isinstance(value, Glob):
        return []
    if isinstance(value, IntervalSweep):
        values = [str(value.start), str(value.end)]
    else:
        values = list(override.sweep_string_iterator())
        values = values[:: max(1, len(values) - 1)] if isinstance(value, RangeSweep) else values
    return [f"{override.get_key_element()}={each}" for each in values]


def last_value(overrides: Sequence[str], key: str) -> str | None:
    """Return the value that the last override of `key` gives, as a text; None if there is none."""
    given = [override for override in parse_overrides(overrides) if override.key_or_group == key]
    values = [value for override in given for value in _override_values(override)]
    if not values or values[-1] is None:
        return None
    return re.sub(
        r"(\\+)\$\{", lambda match: match[1][: len(match[1]) // 2] + "${", str(values[-1])
    )  # see quote_override


def _register_options() -> None:
    """Make each classifier of torchvision, and each part that a package registers, an option that needs no file."""
    store = ConfigStore.instance()
    for name in sorted({*torchvision_classifiers()} - option_files("model")):
        store.store(name, {"architecture": name, "weights": "IMAGENET1K_V1", "options": {}}, group="model")
    for group, kind in REGISTERED_GROUPS.items():
        for name, entry in find_parts(kind).items():
            target = {"_target_": f"{entry.module}.{entry.attr}"}
            contents: dict[str, dict[str, Any]] = {
                "sources": {
                    "defaults": ["folder"],
                    "root": f"${{oc.env:FLOWERS_DATA,data}}/{name}",
                    "source": {**target, "_partial_": True},
                },
                "backbones": {"architecture": name, "weights": None, "options": {}},
                "losses": {**target, "_partial_": True},
                "schedules": {**target, "_partial_": True},
                "trackers": {name: {**target, "run_dir": "${run_dir}"}},
            }
            if name not in option_files(group) and (group != "model" or name not in torchvision_classifiers()):
                store.store(name, contents[kind], group=group)


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


class _MoreFolders(SearchPathPlugin):
    """Makes Hydra find what is not in conf/ of the project, such as experiments in conf/ of the working directory."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders()[1:]:
            search_path.append("flowers", f"file://{folder}")


Plugins.instance().register(_MoreFolders)
_register_options()  # before Hydra composes any configuration
