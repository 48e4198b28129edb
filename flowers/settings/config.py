"""Compose settings from conf/ and overrides, and check them."""

import inspect
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count, islice, product
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, overload

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flowers.settings.config_reference import CONF as CONF
from flowers.settings.literal_overrides import literal_overrides
from flowers.settings.overrides import (
    compose_checked,
    compose_once,
    escape_interpolations,
    hydra_context,
    parse_overrides,
    quote_override,
    single_overrides,
)
from flowers.settings.programs import program_of, settings_type
from flowers.settings.registry import find_object, import_problem
from flowers.settings.schema.training import TrainSettings
from flowers.settings.schema.values import Group, Target, expand_home
from flowers.settings.suggestions import suggest_key
from flowers.settings.validation import S, check_values

_RUN_DIR = "${hydra:runtime.output_dir}"  # of conf/train.yaml, which only Hydra resolves


@overload
def load_config(overrides: Sequence[str] = (), name: Literal["train"] = "train") -> TrainSettings: ...


@overload
def load_config(overrides: Sequence[str], name: str) -> Group: ...


def load_config(overrides: Sequence[str] = (), name: str = "train") -> Group:
    """Compose settings in Python as the command line does: `load_config(["experiment=quickstart"])`.

    A training gets a new run folder, `outputs/<date>/<time>`, unless `run_dir=FOLDER` is given.

    Args:
        overrides: As on the command line, such as "model=resnet18" or "head.epochs=3".
        name: The program.

    Returns:
        The settings of the program, typed: those of "train" are a `TrainSettings`.

    Raises:
        ValueError: An override is wrong, or has several values.
    """
    overrides = literal_overrides(overrides, [name])
    if several := [each.input_line for each in parse_overrides(overrides) if each.is_sweep_override()]:
        raise ValueError(f"{several[0]}: expected one value; only -m on the command line runs several")
    schema = settings_type(name)
    with hydra_context():
        if name != "train" or any(each.key_or_group == "run_dir" for each in parse_overrides(overrides)):
            return compose_single(overrides, schema).settings
        with new_folder(Path(time.strftime("outputs/%Y-%m-%d/%H-%M-%S")).resolve()) as folder:
            return compose_single([*overrides, f"run_dir={quote_override(folder)}"], schema).settings


class ComposedRun(NamedTuple, Generic[S]):
    """The settings of a single run, and what Hydra composed them from.

    Attributes:
        overrides: As `check_overrides` returns them.
        settings: The settings, typed.
        cfg: The configuration with Hydra's own group, for `flowers.settings.job`.
    """

    overrides: list[str]
    settings: S
    cfg: DictConfig


def compose_single(overrides: Sequence[str], schema: type[S]) -> ComposedRun[S]:
    """Compose the settings of a single run once, and check names and values, within `hydra_context`.

    Raises:
        ValueError: See `check_overrides` and `read_settings`; or an override has several values.
    """
    with _one_line():
        checked, cfg = compose_checked(overrides, program_of(schema))
    return ComposedRun(checked, settings_of_run(cfg, schema), cfg)


def compose_settings(overrides: Sequence[str], schema: type[S]) -> S:
    """Compose the settings of a program, and check the value of each key; in a sweep, all of its values.

    Args:
        overrides: From `check_overrides`.
        schema: The settings of the program.

    Returns:
        The settings, with the first value of each override that has several. `run_dir` is that of a single run.

    Raises:
        ValueError: See `check_values`; or a value refers to one that does not exist.
    """
    name = program_of(schema)
    lines = [single_overrides(override) for override in parse_overrides(overrides)]
    lines = [each for each in lines if each]
    first = [each[0] for each in lines]
    with hydra_context():
        settings = settings_of_run(compose_run(first, name), schema)
        for index, each in enumerate(lines):
            for line in each[1:]:
                settings_of_run(compose_run([*first[:index], line, *first[index + 1 :]], name), schema)
    return settings


def has_valid_job(overrides: Sequence[str], schema: type[Group]) -> bool:
    """Return whether one of the first 64 jobs of a sweep has no wrong value."""
    values = [each for each in (single_overrides(override) for override in parse_overrides(overrides)) if each]
    swept = [each[0].partition("=")[0] for each in values if len(each) > 1]
    reasons = list[str]()
    with hydra_context():
        # If the first and the last job fail for one reason, which names no key of the sweep, all of them fail.
        for job in ([each[0] for each in values], [each[-1] for each in values], *islice(product(*values), 64)):
            try:
                settings_of_run(compose_run(job, program_of(schema)), schema)
            except ValueError as error:
                reasons.append(str(error))
                if len(reasons) == 2 and len(set(reasons)) == 1 and not any(key in reasons[0] for key in swept):
                    return False
            else:
                return True
    return False


def compose_run(overrides: Sequence[str], name: str) -> DictConfig:
    """Compose the configuration of a single run, with Hydra's own group, within `hydra_context`.

    Raises:
        ValueError: Hydra cannot compose it.
    """
    with _one_line():
        return compose_once(overrides, name)


@contextmanager
def _one_line() -> Iterator[None]:
    """Raise what Hydra raises in a composition as ValueError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        reason = f": {str(error.__cause__).splitlines()[0]}" if error.__cause__ else ""
        raise ValueError(str(error).splitlines()[0] + reason) from error


def settings_of_run(cfg: DictConfig, schema: type[S]) -> S:
    """Return the settings of a configuration from `compose_run`, which stays as it is.

    Raises:
        ValueError: See `read_settings`.
    """
    own = cfg.copy()
    if OmegaConf.to_container(OmegaConf.masked_copy(own, "run_dir")) == {"run_dir": _RUN_DIR}:
        own.run_dir = escape_interpolations(own.hydra.run.dir)
    with open_dict(own):
        del own["hydra"]
    return read_settings(own, schema)


def read_settings(cfg: DictConfig, schema: type[S]) -> S:
    """Return what Hydra composed as typed settings. Nothing below the programs sees the configuration itself.

    Raises:
        ValueError: See `check_values`; or a value refers to one that does not exist.
    """
    try:
        if "run_dir" in cfg:  # the folders of callbacks and trackers follow from it
            cfg = cfg.copy()
            cfg.run_dir = escape_interpolations(str(Path(expand_home(cfg.run_dir)).resolve()))
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} is missing: give {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        unset = re.search("Environment variable '(.*)' not found", str(error))
        reason = f"the environment variable {unset[1]} is not set" if unset else str(error).splitlines()[0]
        raise ValueError(f"{error.full_key}: {reason}: give a value") from error
    assert isinstance(values, dict)
    return check_values({str(key): value for key, value in values.items()}, schema)


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


@contextmanager
def own_folder(composed: ComposedRun[S], schema: type[S]) -> Iterator[ComposedRun[S]]:
    """Make the run folder of a single run, unless the user has named one: another run may begin in the same second."""
    named = ("run_dir=", "hydra.run.dir=")
    if "run_dir" not in composed.cfg or any(line.lstrip("+").startswith(named) for line in composed.overrides):
        yield composed
        return
    cfg, first = composed.cfg, composed.cfg.hydra.run.dir
    with new_folder(Path(first)) as folder:
        if str(folder) == first:
            yield composed
        else:
            cfg.hydra.run.dir = str(folder)
            yield composed._replace(settings=settings_of_run(cfg, schema))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for a new run, with a number added to its name if it exists. An error takes the folder away."""
    parents = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        numbered = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with suppress(FileExistsError):
            numbered.mkdir()  # of several processes in the same second, one makes it
            break
    try:
        yield numbered
    except BaseException:
        with suppress(OSError):  # one that holds something stays
            for each in (numbered, *parents):
                each.rmdir()
        raise


def build_parts(group: Group) -> dict[str, Any]:
    """Return the settings of a group as arguments; each one that names a `_target_` is called."""
    given = group.to_dict()
    return given | {name: each.build() for name, each in group.given().items() if isinstance(each, Target)}
