"""Compose configurations, check them, and convert them to plain Python."""

import inspect
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flowers.settings.config_reference import CONF as CONF
from flowers.settings.config_reference import OUTSIDE_FOLDERS, OUTSIDE_MODULES
from flowers.settings.overrides import check_overrides, hydra_context, parse_overrides, single_overrides
from flowers.settings.registry import find_object, import_problem
from flowers.settings.schema import PROGRAM_SCHEMAS
from flowers.settings.schema.values import Group
from flowers.settings.suggestions import suggest_key
from flowers.settings.validation import check_values


def add_programs(package: str, folder: Path, schemas: Mapping[str, type[Group]]) -> None:
    """Let programs of another package be composed, checked and explained as those of flowers are.

    Args:
        package: The package; `python -m package.name` starts the program `name`.
        folder: Where its files are, name.yaml for each program. They may use the files of conf/.
        schemas: The schema of the settings of each program, by name.
    """
    OUTSIDE_FOLDERS.append(folder)
    OUTSIDE_MODULES.update({name: f"{package}.{name}" for name in schemas})
    PROGRAM_SCHEMAS.update(schemas)


def load_config(overrides: Sequence[str] = (), name: str = "train") -> DictConfig:
    """Compose a configuration in Python as the command line does: `load_config(["experiment=quickstart"])`.

    A training configuration gets a new run folder, `outputs/<date>/<time>`, unless `run_dir=FOLDER` is given.

    Args:
        overrides: As on the command line, such as "model=resnet18" or "head.epochs=3".
        name: The program.

    Raises:
        ValueError: An override is wrong, or has several values.
    """
    if several := [each.input_line for each in parse_overrides(overrides) if each.is_sweep_override()]:
        raise ValueError(f"{several[0]}: expected one value; only -m on the command line runs several")
    cfg = compose_checked(check_overrides(overrides, name), name)
    if "run_dir" in cfg and not any(each.key_or_group == "run_dir" for each in parse_overrides(overrides)):
        cfg.run_dir = str(_new_run_dir())
    return cfg


def compose_checked(overrides: Sequence[str], name: str) -> DictConfig:
    """Compose the configuration of a program, and check the value of each key; in a sweep, all of its values.

    Args:
        overrides: From `check_overrides`.
        name: The program.

    Returns:
        The configuration, with the first value of each override that has several. `run_dir` is that of a single run.

    Raises:
        ValueError: See `check_values`; or a value refers to one that does not exist.
    """
    lines = [single_overrides(override) for override in parse_overrides(overrides)]
    lines = [each for each in lines if each]
    first = [each[0] for each in lines]
    with hydra_context():
        cfg = _compose(name, first)
        check_settings(cfg, name)
        for index, each in enumerate(lines):
            for line in each[1:]:
                check_settings(_compose(name, [*first[:index], line, *first[index + 1 :]]), name)
    return cfg


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        cfg = compose(name, list(overrides), return_hydra_config=True)
        if "run_dir" in cfg and OmegaConf.is_interpolation(cfg, "run_dir"):
            cfg.run_dir = cfg.hydra.run.dir
        with open_dict(cfg):
            del cfg["hydra"]
    except (HydraException, OmegaConfBaseException) as error:
        reason = f": {str(error.__cause__).splitlines()[0]}" if error.__cause__ else ""
        raise ValueError(str(error).splitlines()[0] + reason) from error
    return cfg


def check_settings(cfg: DictConfig, name: str) -> None:
    """Check the keys and values of the configuration of the program `name`.

    Raises:
        ValueError: See `check_values`; or a value refers to one that does not exist.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} is missing: give {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        unset = re.search("Environment variable '(.*)' not found", str(error))
        reason = f"the environment variable {unset[1]} is not set" if unset else str(error).splitlines()[0]
        raise ValueError(f"{error.full_key}: {reason}: give a value") from error
    assert isinstance(values, dict)
    check_values({str(key): value for key, value in values.items()}, PROGRAM_SCHEMAS[name])


def check_targets(values: Mapping[str, Any], prefix: str = "") -> None:
    """Check that what each `_target_` names exists, and takes the other keys of its group. This imports it.

    Args:
        values: Plain Python, such as the whole configuration.
        prefix: What stands before the keys in messages.

    Raises:
        ValueError: A name cannot be imported, a key is not one of its arguments, or an argument is missing.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            check_targets(value, f"{prefix}{key}.")
            if "_target_" in value:
                _check_target(value, f"{prefix}{key}")


def _check_target(group: Mapping[str, Any], key: str) -> None:
    path = str(group["_target_"])
    try:
        target = find_object(path)
        parameters = inspect.signature(target).parameters
    except Exception as error:  # an import runs code, which may raise anything
        raise ValueError(f"{key}._target_={path}: cannot be imported: {import_problem(error)}") from error
    given = [str(name) for name in group if name not in ("_target_", "_partial_")]
    if not any(each.kind == each.VAR_KEYWORD for each in parameters.values()):
        for name in given:
            if name not in parameters:
                hint = suggest_key(f"{key}.{name}", [f"{key}.{each}" for each in parameters])
                raise ValueError(f"{key}.{name}: {path} takes no such argument{hint}")
    for each in parameters.values():
        is_needed = each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        if is_needed and not group.get("_partial_") and each.name not in given:
            raise ValueError(f"{key}.{each.name} is missing: {path} needs it")


def _new_run_dir() -> Path:
    base = Path(time.strftime("outputs/%Y-%m-%d/%H-%M-%S")).resolve()
    candidates = (base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 1000)))
    folder = next(folder for folder in candidates if not folder.exists())
    folder.mkdir(parents=True)  # so that the next call in the same second gets another one
    return folder


def instantiate_group(group: DictConfig) -> dict[str, Any]:
    """Return the settings of a group as arguments; each one that names a `_target_` is called."""
    return {
        str(name): instantiate(value) if isinstance(value, DictConfig) and "_target_" in value else value
        for name, value in group.items()
    }


def to_container(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    """Return `cfg` as plain Python, resolved: a checkpoint with it loads without running code."""
    return {str(name): value for name, value in OmegaConf.to_container(cfg, resolve=True).items()}  # type: ignore[union-attr]
