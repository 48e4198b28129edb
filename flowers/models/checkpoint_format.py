"""The format of checkpoints: what is accepted, and how an older format is upgraded."""

import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from flowers.models.backbones import check_registered
from flowers.runtime.files import open_regular
from flowers.runtime.machine_errors import machine_error_text
from flowers.runtime.text import one_line
from flowers.settings.renamed_keys import rename_old_keys
from flowers.settings.schema.run_files import Hyperparameters
from flowers.settings.validation import check_file, check_stored_config

CHECKPOINT_FORMAT = 3  # also of result.json; format 1 has no `format_version`

_MAX_PICKLE = 32 * 2**20  # a few hundred bytes a tensor, and the names of classes

_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
# What the pickle in a checkpoint may name, as "module name": tensors, and plain containers in the states of callbacks.
_GLOBALS = {
    *(f"torch {name}Storage" for name in _TYPES),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch.nn.parameter Parameter"),
    *("torch Size", "torch device", "collections OrderedDict", "collections Counter", "__builtin__ set"),
}

_CALLBACKS_1 = {"Clock": "StageTimer", "WithinEpoch": "MidEpochCheckpoint", "Pruning": "PruningCallback"}


def read_checkpoint(path: str | Path, mmap: bool = True, is_run: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint in today's format, without running code in it.

    Args:
        path: The checkpoint.
        mmap: Leave the tensors on disk until they are used.
        is_run: Whether the configuration of a run must be in it, which is then checked.

    Raises:
        ValueError: The file is missing, is not a checkpoint of this project, is of a later format, has
            hyperparameters that are unknown or out of range, or a network that no package registers.
    """
    try:
        check_pickle(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        check_checkpoint(checkpoint if isinstance(checkpoint, dict) else {})
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # on arbitrary bytes, torch.load raises anything from OSError to UnpicklingError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a checkpoint of flowers"
        raise ValueError(f"{path} cannot be read: {machine_error_text(error) or reason}") from error
    checkpoint["hyper_parameters"] = check_hyperparameters(path, checkpoint["hyper_parameters"])
    try:
        upgraded = upgrade_checkpoint(checkpoint)
        assert all(isinstance(value, Tensor) for value in upgraded["state_dict"].values())
        assert all(type(upgraded["progress"][key]) is int for key in ("epochs_done", "steps"))
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} cannot be read: not a checkpoint of flowers") from error
    check_registered(path, checkpoint["hyper_parameters"])
    if is_run or checkpoint["hyper_parameters"].get("config"):
        try:
            check_stored_config(upgraded["hyper_parameters"]["config"] or {})
        except ValueError as error:
            raise ValueError(f"{one_line(path)} is damaged: {error}") from None
    return upgraded


def check_checkpoint(checkpoint: Mapping[str, Any]) -> None:
    """Check that a loaded file is a checkpoint of this project that calls no code.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(checkpoint.get("hyper_parameters"), dict) or "classes" not in checkpoint["hyper_parameters"]:
        raise ValueError("not a checkpoint of flowers")
    if _has_key(checkpoint.values(), "_instantiator"):  # Lightning before 2.6.6 imports and calls what it names
        raise ValueError("it names a function to call (_instantiator), which no checkpoint of flowers does")
    found = checkpoint.get("format_version", 1)
    if found not in range(1, CHECKPOINT_FORMAT + 1):
        raise ValueError(f"its format_version is {found}, expected at most {CHECKPOINT_FORMAT}: update flowers")


def check_pickle(path: str | Path) -> None:
    """Check the part of a checkpoint file that is not tensors, before it is loaded.

    torch loads it without running code of the file. But among what it may call is what takes any amount of memory.

    Raises:
        ValueError: It is compressed, too large, or names what no checkpoint of this project does.
        OSError: The file is no regular file, or cannot be read.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed, which no checkpoint of flowers is")
                (entry,) = (each for each in archive.infolist() if PurePath(each.filename).name == "data.pkl")
                if entry.file_size > _MAX_PICKLE:
                    raise ValueError(
                        f"{entry.filename} has {entry.file_size:,} bytes, expected at most {_MAX_PICKLE:,}"
                    )
                content = archive.read(entry)
            for opcode, argument, _ in pickletools.genops(content):
                if "GLOBAL" in opcode.name and argument not in _GLOBALS:
                    raise ValueError(f"it names {one_line(argument)[:100]}, which no checkpoint of flowers does")
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise ValueError("not a checkpoint of flowers") from error


def check_hyperparameters(path: str | Path, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a checkpoint, with lists for tuples, once they are checked.

    Raises:
        ValueError: One is unknown, missing, of another type or out of range.
    """
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in hparams.items()}
    if unknown := sorted(map(str, plain.keys() - Hyperparameters.model_fields.keys())):
        raise ValueError(
            f"{one_line(path)} cannot be read: unknown hyperparameters {one_line(', '.join(unknown))[:200]}"
        )
    check_file(path, plain, Hyperparameters)
    return plain


def upgrade_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of any format as one of `CHECKPOINT_FORMAT`."""
    upgraded = dict(checkpoint)
    if upgraded.get("format_version", 1) == 1:
        hparams = upgraded["hyper_parameters"]
        upgraded["hyper_parameters"] = hparams | {"config": rename_old_keys(hparams["config"] or {})}
        epochs = upgraded["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        upgraded["progress"] = {"epochs_done": epochs, "steps": upgraded["global_step"]}
        if "begun" in upgraded:
            state = upgraded.pop("begun")
            upgraded["mid_epoch"] = {"epoch_steps": state.pop("steps"), **state}
        if "callbacks" in upgraded:
            upgraded["callbacks"] = {_state_key(key, state): state for key, state in upgraded["callbacks"].items()}
        upgraded["format_version"] = 2
    if upgraded["format_version"] == 2:  # it may lack hyperparameters that are younger than the file
        fields = Hyperparameters.model_fields.items()
        defaults = {name: field.default for name, field in fields if not field.is_required()}
        upgraded["hyper_parameters"] = defaults | upgraded["hyper_parameters"]
        upgraded["format_version"] = 3
    return upgraded


def checkpoint_state_key(filename: str, monitor: str | None, mode: str) -> str:
    """Return the key of the state of a RelocatableModelCheckpoint, which does not depend on the name of the class.

    Its best score counts only for the same metric, so that the metric is part of the key.
    """
    return f"checkpoint filename={filename} monitor={monitor} mode={mode}"


def _state_key(key: str, state: Mapping[str, Any]) -> str:
    """Return today's key of the state that a callback saved under `key` in format 1."""
    settings = re.match(r"Checkpoint\{'monitor': (?:None|'(.*?)'), 'mode': '(\w+)'", key)
    if settings:
        return checkpoint_state_key(PurePath(state["best_model_path"]).stem, settings[1], settings[2])
    return _CALLBACKS_1.get(key, key)


def _has_key(values: Iterable[Any], name: str) -> bool:
    """Return whether a dict anywhere inside of `values` has the key `name`."""
    for value in values:
        if isinstance(value, dict):
            if name in value or _has_key(value.values(), name):
                return True
        elif isinstance(value, (list, tuple)) and _has_key(value, name):
            return True
    return False
