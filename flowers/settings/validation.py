"""Check settings against their schema, and put what is wrong into one line."""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from flowers.runtime.text import one_line
from flowers.settings.other_tools import our_value
from flowers.settings.programs import settings_type
from flowers.settings.schema.training import Data, Folder, Shards, Table, TrainSettings
from flowers.settings.schema.values import Expected, Group, expand_home
from flowers.settings.suggestions import did_you_mean, suggest_key

_SHOWN = 200  # characters of a value in a message

# What programs read of the configuration that a run was trained with, beside `tta`. All versions have stored these.
_READ_GROUPS = {("data",), ("model",), ("features",), ("trainer",), ("seed",)}
_READ_KEYS = {
    *(("data", key) for key in ("root", "image_size", "resize", "batch_size", "num_workers")),
    *(("trainer", key) for key in ("accelerator", "precision", "deterministic")),
    *(("model", "architecture"), ("model", "weights"), ("features", "cache"), ("features", "cache_gb")),
}


_PARAMETERS = {"cls", "_fields_set"}  # of `model_construct`: keys that a group of settings cannot have

S = TypeVar("S", bound=Group)


def check_values(values: Mapping[str, Any], schema: type[S], prefix: str = "") -> S:
    """Check settings against a schema, and the rules that join two of them.

    Args:
        values: Plain Python, nested as in the configuration.
        schema: Such as `TrainSettings`.
        prefix: What stands before the keys in messages, such as "data.".

    Returns:
        The settings, typed.

    Raises:
        ValueError: A key is unknown or missing, or a value is not valid. The message names the key, the value, and what
            was expected.
    """
    model = _narrow(schema, _data_kind(values))
    try:
        settings: S = model.model_validate(values)
    except ValidationError as error:
        raise ValueError(_first_problem(error, model, values, prefix)) from None
    for message in _joint_problems(values, prefix):
        raise ValueError(message)
    return settings


def check_file(path: str | Path, content: object, schema: type[S], advice: str = "") -> S:
    """Return the content, typed, of a file that may come from a stranger.

    Args:
        path: The file, for messages.
        content: What it holds, as plain Python.
        schema: One of `schema.run_files`.
        advice: What to do about a damaged file.

    Raises:
        ValueError: Something is wrong. The line names the file, the key, the value, and what was expected.
    """
    try:
        if not isinstance(content, Mapping):
            raise ValueError("expected keys and values")
        return check_values(content, schema)
    except ValueError as error:
        raise ValueError(f"{one_line(path)} is damaged: {error}{advice and f': {advice}'}") from None


def stored_settings(config: Mapping[str, Any]) -> TrainSettings:
    """Return the configuration that a run was trained with, typed. See `check_stored_config`, which comes first.

    Nothing in it is to be built: a stranger may have written what a `_target_` names.

    Args:
        config: What a checkpoint holds. What it lacks, as that of an earlier version, is as it was then, or missing.
    """
    features = config.get("features") or {}
    features = {**features, "engine": features.get("engine", "pytorch")}
    older = {"tta": "none", "reject": None, **config, "features": features}
    settings: TrainSettings = _construct(_narrow(TrainSettings, _data_kind(config)), older)
    return settings


def _construct(schema: type[S], values: Mapping[str, Any]) -> S:
    """Return a group of settings without checks, from values that may lack some."""
    is_open = schema.model_config.get("extra") == "allow"
    kept = {}
    for name, value in values.items():
        if name in schema.model_fields or (is_open and name not in _PARAMETERS):
            kind = _group_of(schema.model_fields.get(name))
            kept[name] = _construct(kind, value) if kind and isinstance(value, Mapping) else value
    settings = schema.model_construct(**kept)
    settings._order = tuple(kept)
    return settings


def check_stored_config(config: Mapping[str, Any]) -> None:
    """Check the configuration that a run was trained with, as far as it is read.

    Earlier versions had other keys: what is missing or unknown is no error, unless each program needs it.

    Raises:
        ValueError: A value is wrong. The message names the key, the value, and what was expected.
    """
    model = _narrow(TrainSettings, _data_kind(config))
    try:
        model.model_validate(config)
    except ValidationError as error:
        known = [each for each in error.errors() if _counts(each)]
        if known:
            raise ValueError(_problem(known[0], model, config, "config.")) from None
    for group in ("data", "model", "features", "trainer"):
        for key, value in _numbers(config.get(group)):
            if not math.isfinite(value):
                raise ValueError(f"config.{group}.{key}={value}: expected a finite number")


def _counts(error: ErrorDetails) -> bool:
    """Return whether an error in a stored configuration is one: see `check_stored_config`."""
    if error["type"] == "missing":
        return error["loc"] in _READ_KEYS or error["loc"] in _READ_GROUPS
    return error["type"] not in ("extra_forbidden", "string_unicode")  # a path may have bytes that are not UTF-8


def _numbers(group: object) -> Iterator[tuple[str, float]]:
    for key, value in group.items() if isinstance(group, Mapping) else ():
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, float):
                yield str(key), each


def _data_kind(values: Mapping[str, Any]) -> type[Group]:
    data = values.get("data")
    kinds: dict[str, type[Group]] = {"packed": Shards, "table": Table}  # by the key that only one of them has
    return next((kind for key, kind in kinds.items() if isinstance(data, Mapping) and key in data), Folder)


@cache
def _narrow(schema: type[S], kind: type[Group]) -> type[S]:
    """Return a schema with one kind of data where it has several, so that messages are about that kind only."""
    data = schema.model_fields.get("data")
    if data is None or data.annotation != Data:
        return schema
    return type(schema.__name__, (schema,), {"__annotations__": {"data": kind}, "__module__": schema.__module__})


def _joint_problems(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    groups = {prefix: values, f"{prefix}data.": values.get("data")}
    for group, settings in groups.items():
        if not isinstance(settings, Mapping):
            continue
        if settings.get("resize") is not None and settings["resize"] < settings["image_size"]:
            yield f"{group}resize={settings['resize']}: expected at least {group}image_size={settings['image_size']}"
        if settings.get("val_fraction", 0) + settings.get("test_fraction", 0) >= 1:
            yield (
                f"{group}val_fraction={settings['val_fraction']} {group}test_fraction={settings['test_fraction']}: "
                "expected a sum below 1, to leave images for training"
            )
        if settings.get("folds") and settings.get("fold", 0) >= settings["folds"]:
            yield (
                f"{group}fold={settings['fold']}: expected a number from 0 to {settings['folds'] - 1} "
                f"({group}folds={settings['folds']})"
            )
    head, finetune = values.get("head"), values.get("finetune")
    if isinstance(head, Mapping) and isinstance(finetune, Mapping) and not head["epochs"] + finetune["epochs"]:
        yield "head.epochs=0 finetune.epochs=0: expected at least 1 epoch in one of them"


def _first_problem(error: ValidationError, schema: type[Group], values: Mapping[str, Any], prefix: str) -> str:
    """Put the first error into words: an unknown key before a wrong value, which may follow from it."""
    errors = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    return _problem(errors[0], schema, values, prefix)


def _problem(error: ErrorDetails, schema: type[Group], values: Mapping[str, Any], prefix: str) -> str:
    keys, field = _locate(schema, error["loc"])
    key = prefix + ".".join(map(_shorten, keys))
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key{suggest_key(key, [prefix + name for name in key_names(schema)])}"
    if error["type"] == "missing":
        return f"{key} is missing: expected {field_text(field)}"
    value: Any = values
    for name in keys:
        value = value[int(name)] if isinstance(value, (list, tuple)) else value[name]
    shown = _shorten(format_setting(value))
    meant = our_value(f"{key}={shown}")
    hint = (
        f": did you mean {meant}?"
        if meant != f"{key}={shown}"
        else did_you_mean(shown, _choices(field))
        if field
        else ""
    )
    if field and not isinstance(value, (list, dict, type(None))) and get_origin(field.annotation) is list:
        hint = hint or f": did you mean {key}=[{shown}]?"
    batch_size = values.get("data", values).get("batch_size")
    if keys[-1] == "image_size" and isinstance(value, int) and value > 0 and isinstance(batch_size, int):
        hint = f" (a batch of {batch_size} such images takes {12 * value**2 * batch_size / 1e9:,.1f} GB)"
    return f"{key}={shown}: expected {field_text(field)}{hint}"


def _shorten(text: str) -> str:
    return one_line(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _locate(schema: type[Group], location: tuple[int | str, ...]) -> tuple[list[str], FieldInfo | None]:
    """Return the keys and the field of an error; what follows in its location is inside of the value."""
    keys: list[str] = []
    field: FieldInfo | None = None
    model: Any = schema
    for number, part in enumerate(location, 1):
        if not (isinstance(model, type) and issubclass(model, Group)):
            break
        if isinstance(part, int):  # an item of a list of groups
            keys.append(str(part))
            continue
        if part not in model.model_fields and number < len(location):  # one of several kinds that a value may have
            continue
        keys.append(str(part))
        field = model.model_fields.get(str(part))
        model = _group_of(field)
    return keys, field


def _group_of(field: FieldInfo | None) -> Any:
    """Return the group that a field holds, also one that may be null; None for a value."""
    kinds = [field.annotation, *get_args(field.annotation)] if field else []
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Group)), None)


def key_names(schema: type[Group], prefix: str = "") -> list[str]:
    """Return all keys of a schema, such as "data.root"."""
    names = []
    for name, field in schema.model_fields.items():
        names.append(prefix + name)
        if group := _group_of(field):
            names += key_names(group, f"{prefix}{name}.")
    return names


class TextKey(NamedTuple):
    """A key that takes a text as it is.

    Attributes:
        is_path: Whether the text is a path.
        is_list: Whether the key takes a list of texts.
        is_text: Whether it takes a single text.
    """

    is_path: bool
    is_list: bool
    is_text: bool


def text_keys(schema: type[Group], prefix: str = "") -> dict[str, TextKey]:
    """Return the keys of a schema whose values are texts, paths or null, and nothing else."""
    found = dict[str, TextKey]()
    for name, field in schema.model_fields.items():
        leaves = [*_leaves(field.annotation, field.metadata)]
        for kind in [kind for kind, _, _ in leaves if isinstance(kind, type) and issubclass(kind, Group)]:
            found |= text_keys(kind, f"{prefix}{name}.")
        texts = [(metadata, is_list) for kind, metadata, is_list in leaves if kind is str]
        if texts and {kind for kind, _, _ in leaves} <= {str, type(None)}:
            marks = _unpack([mark for metadata, _ in texts for mark in metadata])
            is_path = any(isinstance(mark, AfterValidator) and mark.func is expand_home for mark in marks)
            is_list, is_text = any(each for _, each in texts), not all(each for _, each in texts)
            if is_text or is_path:  # other lists are of overrides, formats and addresses
                found[prefix + name] = TextKey(is_path, is_list, is_text)
    return found


def _leaves(kind: Any, metadata: list[Any], is_list: bool = False) -> Iterator[tuple[Any, list[Any], bool]]:
    """Yield the types that a value may have, with their bounds and markers, and whether they are items of a list."""
    if get_origin(kind) is Annotated:
        yield from _leaves(get_args(kind)[0], [*get_args(kind)[1:], *metadata], is_list)
    elif get_origin(kind) is list:
        yield from _leaves(get_args(kind)[0], [], is_list=True)
    elif get_origin(kind) in (Union, UnionType):
        for each in get_args(kind):
            yield from _leaves(each, metadata, is_list)
    else:
        yield kind, metadata, is_list


def listed_values(program: str, key: str) -> list[str]:
    """Return the values of a key if they can be listed, as one writes them on the command line; else none."""
    schema: Any = settings_type(program)
    for kind in (Folder, Table, Shards):
        _, field = _locate(_narrow(schema, kind), tuple(key.split(".")))
        if field is not None:
            has_null = type(None) in get_args(field.annotation)
            values = ["true", "false"] if bool in (field.annotation, *get_args(field.annotation)) else []
            values += _choices(field)
            return [*values, "null"] if values and has_null else values
    return []


def format_setting(value: Any) -> str:
    """Return a value as one writes it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(format_setting, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{format_setting(each)}" for name, each in value.items()) + "}"
    return "null" if value is None else str(value)


def field_text(field: FieldInfo | None) -> str:
    """Return what a field accepts, in words: "a whole number, at least 1, or null"."""
    if field is None:
        return "another value"
    return _kind_text(field.annotation, field.metadata)


def _kind_text(kind: Any, metadata: list[Any]) -> str:
    for each in metadata:
        if isinstance(each, Expected):
            return each.text if isinstance(each.text, str) else each.text()
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        return _kind_text(kind, [*_unpack(inner), *metadata])
    if get_origin(kind) is Literal:
        choices = list(map(format_setting, get_args(kind)))
        return "one of " + ", ".join(choices) if len(choices) > 1 else choices[0]
    if get_args(kind) and get_origin(kind) not in (list, dict):  # a union
        kinds = [each for each in get_args(kind) if each is not type(None)]
        choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
        parts = [_kind_text(each, metadata) for each in kinds if get_origin(each) is not Literal]
        parts += [_kind_text(Literal[tuple(choices)], [])] if choices else []
        return ", or ".join(parts + (["null"] if type(None) in get_args(kind) else []))
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    name = names.get(kind) or ("a list" if get_origin(kind) is list else "a group of settings (key.name=value)")
    return name + _bounds_text(_unpack(metadata))


def _unpack(metadata: list[Any]) -> list[Any]:
    """Return bounds and markers: a `Field(ge=…)` inside of a union still holds its bounds."""
    return [part for each in metadata for part in (each.metadata if isinstance(each, FieldInfo) else [each])]


def _bounds_text(metadata: list[Any]) -> str:
    low = next((f"at least {each.ge:.12g}" for each in metadata if isinstance(each, Ge)), "")
    low = low or next((f"above {each.gt:.12g}" for each in metadata if isinstance(each, Gt)), "")
    high = next((f"at most {each.le:.12g}" for each in metadata if isinstance(each, Le)), "")
    high = high or next((f"below {each.lt:.12g}" for each in metadata if isinstance(each, Lt)), "")
    if any(isinstance(each, MinLen) for each in metadata):
        return " that is not empty"
    if low.startswith("at least") and high.startswith("at most"):
        return f" from {low.removeprefix('at least ')} to {high.removeprefix('at most ')}"
    bounds = " and ".join(part for part in (low, high) if part)
    return f", {bounds}" if bounds else ""


def _choices(field: FieldInfo) -> list[str]:
    kinds = [field.annotation, *get_args(field.annotation)]
    return [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
