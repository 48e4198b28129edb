"""The format of checkpoints: what is accepted, and how an older format is upgraded."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from flowers.runtime.overrides import rename_old_keys

CHECKPOINT_FORMAT = 2  # also of result.json; format 1 has no `format_version`

_CALLBACKS_1 = {"Clock": "StageTimer", "WithinEpoch": "MidEpochCheckpoint", "Pruning": "PruningCallback"}


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
    hparams = upgraded["hyper_parameters"]  # without tta and reject if they are older than these settings
    upgraded["hyper_parameters"] = hparams | {"config": {"tta": "none", "reject": None} | (hparams["config"] or {})}
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
