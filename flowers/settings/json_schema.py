"""JSON schemas of the files in conf/, with which an editor completes and checks them.

Keys, types and ranges come from `flowers.settings.schema`, texts and defaults from the comments in conf/. A file sets a
part of the keys, so that none is required, and any value may be an interpolation (`${…}`) or missing (`???`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from flowers.settings.config_reference import (
    CONF,
    GROUPS,
    Setting,
    documented_options,
    find_config_file,
    options_of,
    settings_of,
    torchvision_classifiers,
)
from flowers.settings.programs import CONFIGURED, PROGRAMS, all_programs, settings_type
from flowers.settings.schema.training import ModelPixels
from flowers.settings.schema.values import Target

_DRAFT = "http://json-schema.org/draft-07/schema#"  # what editors understand
_LATER = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}  # a value that is known later
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_TARGET: dict[str, Any] = {
    "_target_": {"type": "string", "description": "the function or class that is called with the other keys"},
    "_partial_": {"type": "boolean", "description": "true: the program adds the arguments that are missing"},
}
_LOGGING_GROUPS = ("hydra/job_logging", "hydra/hydra_logging")
_LOGGING_KEYS = ("formatters", "filters", "handlers", "loggers", "root")  # of logging.config.dictConfig
_BASES = {"program": {}, "image_settings": ModelPixels.model_json_schema()}  # files that others build on
_PROGRAMS = (
    *CONFIGURED,
    *(name for name, each in all_programs().items() if each.is_installed and name not in PROGRAMS),
)
KINDS = (*_PROGRAMS, *_BASES, *GROUPS, *_LOGGING_GROUPS)


def json_schema(kind: str) -> dict[str, Any]:
    """Return the schema of a kind of file: a program or a group, such as "train", "data" or "experiment".

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind}: expected one of {', '.join(KINDS)}")
    schema = _file_schema(kind)
    if any(_is_global(kind, option) for option in documented_options(kind) if kind not in ("experiment", "debug")):
        # A file with `@package _global_` sets keys of several groups, its own among them.
        schema = {"if": {"required": [kind]}, "then": _file_schema("train", kind), "else": schema}
    return {"$schema": _DRAFT, "title": f"flowers: {file_pattern(kind)}", **schema}


def file_pattern(kind: str) -> str:
    """Return which files are of a kind, as a glob: "conf/data/*.yaml"."""
    return f"conf/{kind}.yaml" if kind in (*_PROGRAMS, *_BASES) else f"conf/{kind}/*.yaml"


def _is_global(group: str, option: str) -> bool:
    return find_config_file(f"{group}/{option}").read_text(encoding="utf-8").startswith("# @package _global_")


def _file_schema(kind: str, group: str | None = None) -> dict[str, Any]:
    """Return the schema of a kind of file; its options in `defaults` are relative to `group`."""
    if kind in ("experiment", "debug"):
        return _file_schema("train", kind)
    if kind in _LOGGING_GROUPS:
        properties: dict[str, Any] = dict.fromkeys(_LOGGING_KEYS, _ANY_OBJECT)
        properties |= {"version": {"const": 1}, "disable_existing_loggers": {"type": "boolean"}}
        schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    elif kind in _PROGRAMS:
        schema = _program_schema(kind)
    elif kind in _BASES:
        schema = _delta({"type": "object", "properties": {}, **_BASES[kind]}, {}, "", _texts(f"{kind}", "data"))
    else:
        schema = {} if kind == "hydra/launcher" else _group_schema(kind)
        if "properties" not in schema:  # what it calls may have any keys
            schema = _delta({"properties": {}, **Target.model_json_schema()}, {}, "", {})
    schema["type"] = "object"
    schema["properties"] = {"defaults": _defaults(group or ("" if kind in _PROGRAMS else kind)), **schema["properties"]}
    if kind in (*_PROGRAMS, "program"):
        schema["properties"]["hydra"] = _ANY_OBJECT
    return schema


def _program_schema(program: str) -> dict[str, Any]:
    raw = settings_type(program).model_json_schema()
    return _delta(raw, raw.get("$defs", {}), "", _texts(program))


def _group_schema(group: str) -> dict[str, Any]:
    """Return the schema of a group in the first program that has it."""
    for program in CONFIGURED:
        schema = _program_schema(program)
        for name in group.split("/"):
            schema = schema.get("properties", {}).get(name, {})
        if schema:
            return schema
    raise AssertionError(f"no program has the group {group}")


def _texts(name: str, prefix: str = "") -> dict[str, Setting]:
    """Return the settings of a file and of all groups, by key; those of the file count more."""
    files = [f"{group}/{option}" for group in GROUPS for option in documented_options(group)]
    files = [file for file in files if not file.startswith(("experiment", "debug", "recipe/", "hydra"))]
    found = {each.key: each for file in files for each in reversed(settings_of(file))}
    # The options of a group may have other defaults.
    found = {key: each._replace(default="") for key, each in found.items()}
    return {key.removeprefix(f"{prefix}."): each for key, each in found.items()} | {
        each.key: each for each in settings_of(name)
    }


def _delta(node: Mapping[str, Any], defs: Mapping[str, Any], key: str, texts: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the schema of a part of what pydantic's schema `node` describes, without references.

    Args:
        node: The schema of the value at `key`.
        defs: The definitions that it refers to.
        key: Such as "data.root".
        texts: The settings by key.
    """
    kinds = list(_alternatives(node, defs))
    setting = texts.get(key)
    described: dict[str, Any] = {"description": setting.text} if setting and setting.text else {}
    groups = [each for each in kinds if "properties" in each]
    if not groups:
        return described | _value(kinds, setting)
    properties: dict[str, Any] = {}
    for group in groups:
        is_open = group.get("additionalProperties", False)
        properties |= _TARGET if is_open else {}
        for name, each in group["properties"].items():
            child = _delta(each, defs, f"{key}.{name}".lstrip("."), texts)
            known = properties.get(name, child)
            properties[name] = child if known == child else {"anyOf": [known, child]}
    kind: Any = ["object", "null"] if len(kinds) > len(groups) else "object"
    is_open = any(group.get("additionalProperties", False) for group in groups)
    return described | {"type": kind, "properties": properties, "additionalProperties": is_open}


def _alternatives(node: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        yield from _alternatives(defs[node["$ref"].rpartition("/")[2]], defs)
    elif "anyOf" in node:
        for each in node["anyOf"]:
            yield from _alternatives(each, defs)
    else:
        yield {name: value for name, value in node.items() if name not in ("title", "default", "description")}


def _value(kinds: list[dict[str, Any]], setting: Setting | None) -> dict[str, Any]:
    """Return a schema of one of several kinds of value, or of an interpolation."""
    default: dict[str, Any] = {}
    if setting and setting.default and "${" not in setting.default and "???" not in setting.default:
        default = {"default": yaml.safe_load(setting.default)}
    kinds = [each | ({"items": _value([dict(each["items"])], None)} if "items" in each else {}) for each in kinds]
    takes_any_text = any(
        each.get("type", "string") == "string" and not each.keys() & {"enum", "const", "pattern"} for each in kinds
    )
    later = [] if takes_any_text else [_LATER]
    types = [each.get("type") for each in [*kinds, *later]]
    types = ["number" if each == "integer" and "number" in types else each for each in types]
    if len(set(types)) < len(types) or any(each.keys() & {"enum", "const"} for each in kinds):
        return default | {"anyOf": [*kinds, *later]}
    merged: dict[str, Any] = {}
    for each in [*kinds, *later]:
        merged |= each
    return default | merged | ({"type": types if len(types) > 1 else types[0]} if None not in types else {})


def _defaults(group: str) -> dict[str, Any]:
    """Return the schema of a defaults list in a file of `group`; "" for that of a program."""
    options: dict[str, Any] = {}
    for name in GROUPS:
        choices = options_of(name) + (torchvision_classifiers() if name == "model" else [])
        value = {"enum": [*dict.fromkeys(choices), None]}
        relative = name.removeprefix(f"{group}/")
        for key in (f"/{name}", relative, f"override /{name}", f"override {relative}"):
            options[key] = value
    files = ["_self_", *(options_of(group) if group else _BASES)]
    return {
        "type": "array",
        "description": "the options that the file chooses, and the files that it builds on",
        "items": {
            "type": ["string", "object"],
            "anyOf": [{"enum": files}, {"pattern": "^/"}, {"type": "object"}],
            "properties": options,
            "patternProperties": {"^(override )?/?hydra/": {"type": ["string", "null"]}},
            "additionalProperties": False,
            "maxProperties": 1,
        },
    }


def vscode_settings(folder: str) -> dict[str, Any]:
    """Return what .vscode/settings.json needs to use the schemas in `folder`."""
    return {"yaml.schemas": {f"{folder}/{file_name(kind)}": file_pattern(kind) for kind in KINDS}}


def file_name(kind: str) -> str:
    """Return the name of the file of a schema: "data-augmentation.json"."""
    return f"{kind.replace('/', '-')}.json"


def config_files() -> Iterator[tuple[str, str]]:
    """Yield each file of conf/, relative to it, and its kind."""
    for path in sorted(CONF.rglob("*.yaml")):
        name = path.relative_to(CONF).with_suffix("").as_posix()
        yield name, name if "/" not in name else name.rpartition("/")[0]
