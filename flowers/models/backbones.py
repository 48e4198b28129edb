"""Torchvision classifiers without their last layer, with the weights asked for."""

import copy
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from flowers.runtime.config import did_you_mean


def build_backbone(architecture: str, weights: str | Path | None, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The network up to the input of its last linear layer, and the width F of that input: (B, 3, H, W) to (B, F).

    Args:
        architecture: a name in `torchvision.models`, such as "resnet152".
        weights: a torchvision weights name ("DEFAULT", "IMAGENET1K_V1"), a state dict's path (.safetensors, or what
            torch.save wrote; read without running any code in it), or None for random ones.
        options: further arguments of the architecture's builder.

    Raises ValueError for a name that is unknown, or weights that cannot be had or do not fit.
    """
    known = models.list_models(module=models)
    if architecture not in known:
        raise ValueError(f"model.architecture={architecture} is not in torchvision{did_you_mean(architecture, known)}")
    if weights is None:
        return _build(architecture, None, dict(options))
    path = Path(weights)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    network, width = _cached_pretrained(architecture, str(weights), changed, json.dumps(dict(options)))
    return copy.deepcopy(network), width


@functools.lru_cache(maxsize=1)  # a multirun's jobs start from the same weights
def _cached_pretrained(architecture: str, weights: str, changed: int, options: str) -> tuple[nn.Module, int]:
    return _build(architecture, weights, json.loads(options))


def _build(architecture: str, weights: str | None, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    state = None if weights is None else _load_state_dict(architecture, weights)
    network = (
        models.get_model(architecture, weights=None, **options)
        if state is None
        else _build_on_meta(architecture, options)
    )
    name, last = _last_linear(architecture, network)
    if state is not None:
        _load_weights(network, state, last=name, source=f"model.weights={weights}")
    network.set_submodule(name, nn.Identity())
    return network, last.in_features


def _build_on_meta(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """The network without values where it can be had so: to draw a ResNet-152's and drop them takes a second."""
    try:
        with torch.device("meta"):
            return cast(nn.Module, models.get_model(architecture, weights=None, **options))
    except NotImplementedError:  # RegNet computes its widths with tensors
        return cast(nn.Module, models.get_model(architecture, weights=None, **options))


def state_dict_sha256(network: nn.Module) -> str:
    """The SHA-256 of a network's parameters and buffers, names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_weights(architecture: str, sources: Sequence[str | Path]) -> str | None:
    """The `weights` for `build` from the first of `sources` that has some; None where none has.

    Args:
        architecture: a name in `torchvision.models`.
        sources: torchvision weights names, tried by a download, and folders of files called after the architecture
            ("resnet18-f37072fd.pth", "resnet18.safetensors").
    """
    for source in map(str, sources):
        files = [path for path in sorted(Path(source).glob(f"{architecture}[-_.]*")) if path.is_file()]
        if files:
            return str(files[0])
        if source in (*models.get_model_weights(architecture).__members__, "DEFAULT"):
            try:
                _download_weights(architecture, source)
                return source
            except ValueError:
                continue  # there is no network: the next one
    return None


def _last_linear(architecture: str, network: nn.Module) -> tuple[str, nn.Linear]:
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"model.architecture={architecture} has no linear layer to replace: choose another one")
    return linear[-1]


def _load_state_dict(architecture: str, weights: str) -> dict[str, Tensor]:
    names = list(models.get_model_weights(architecture).__members__)
    if weights in (*names, "DEFAULT"):
        return _download_weights(architecture, weights)
    if not Path(weights).is_file():
        raise ValueError(
            f"model.weights={weights} is neither a file nor one of {architecture}'s names in torchvision "
            f"({', '.join([*names, 'DEFAULT'])}){did_you_mean(weights, names)}"
        )
    try:
        if weights.endswith(".safetensors"):
            return dict(load_file(weights))
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"model.weights={weights} cannot be read: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle.UnpicklingError: a file that would run code
        raise ValueError(f"model.weights={weights} is not a plain state dict of tensors") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"model.weights={weights} is not a plain state dict of tensors")
    return state


def _download_weights(architecture: str, weights: str) -> dict[str, Tensor]:
    chosen = models.get_model_weights(architecture)[weights]
    try:
        return dict(chosen.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"cannot download {chosen.url} ({error}): put it into {folder} by hand, or give a file with "
            "model.weights=PATH, or model.weights=null to start from random weights"
        ) from error


def _load_weights(network: nn.Module, state: Mapping[str, Tensor], last: str, source: str) -> None:
    """Loads all but the last layer, which is about to be replaced and may be of any size."""
    wanted = {key: value.shape for key, value in network.state_dict().items() if not key.startswith(f"{last}.")}
    found = {key: value.shape for key, value in state.items() if not key.startswith(f"{last}.")}
    # Auxiliary classifiers help only a training from scratch; torchvision itself drops them from what it downloads.
    found = {key: shape for key, shape in found.items() if key in wanted or not key.startswith(("aux", "AuxLogits"))}
    # Files from before PyTorch 0.4.1 do not count batches.
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    surplus = [key for key in found if key not in wanted]
    misshapen = [
        f"{key} {tuple(found[key])} for {tuple(shape)}"
        for key, shape in wanted.items()
        if found.get(key, shape) != shape
    ]
    if missing or surplus or misshapen:
        kinds = {"missing": missing, "not in the model": surplus, "of another shape": misshapen}
        listed = "; ".join(f"{len(keys)} {kind} ({_abbreviate(keys)})" for kind, keys in kinds.items() if keys)
        raise ValueError(f"{source} does not fit {type(network).__name__} (is it of another architecture?): {listed}")
    loaded = network.state_dict()  # with its modules' versions, which MNASNet asks for
    for key in wanted:
        loaded[key] = state[key].to(loaded[key].dtype).clone() if key in found else torch.tensor(0)
    network.load_state_dict(loaded, assign=True)


def _abbreviate(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", …" if len(keys) > count else "")


def check_backbone(architecture: str, weights: str | Path | None) -> None:
    """Check the architecture's name and that `weights` is a name or a file, without reading or downloading anything."""
    known = models.list_models(module=models)
    if architecture not in known:
        raise ValueError(f"model.architecture={architecture} is not in torchvision{did_you_mean(architecture, known)}")
    names = list(models.get_model_weights(architecture).__members__)
    if weights is not None and str(weights) not in (*names, "DEFAULT") and not Path(weights).is_file():
        raise ValueError(
            f"model.weights={weights} is neither a file nor one of {architecture}'s names in torchvision "
            f"({', '.join([*names, 'DEFAULT'])}){did_you_mean(str(weights), names)}"
        )
