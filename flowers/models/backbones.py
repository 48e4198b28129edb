"""Backbones: image classifiers without their last linear layer, with random or pretrained weights.

A name of torchvision is a network of torchvision, any other name one of timm; "timm/resnet50" is that of timm, too.

Another package may register a function that returns an image classifier (the backbone is what comes before its last
`nn.Linear`) as an entry point of `flowers.backbones`. `model.architecture=NAME model.weights=FILE` then uses it, and
each key of `model.options` is an argument of the function.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchvision import models

from flowers.models.network_options import check_options, declared_options
from flowers.models.timm_backbones import (
    cached_weights,
    classifier_layers,
    convert_state_dict,
    create_timm_network,
    is_installed,
    timm_names,
    timm_weights_names,
)
from flowers.runtime.extras import install_command
from flowers.runtime.text import one_line
from flowers.settings.registry import find_parts, load_part, package_of
from flowers.settings.suggestions import did_you_mean

_TIMM_PREFIX = "timm/"
_CLASSIFIER_LAYERS, _CLASSIFIER_NUMBERS = 64, 2**27  # of any network: VGG's has 6 parameters and 2**27 numbers


def check_backbone(architecture: str, weights: str | Path | None, options: Mapping[str, Any]) -> None:
    """Check the arguments of `build_backbone` before anything is downloaded: weights from a file are loaded already.

    Raises:
        ValueError: See `build_backbone`.
    """
    _check_names(architecture, weights)
    if weights is not None and Path(weights).is_file():
        _pretrained(architecture, weights, options)
    elif options:
        _build_on_meta(_builder(architecture), options)


def timm_name(architecture: str) -> str | None:
    """Return the name of an architecture in timm, with "timm/" removed; None for one of torchvision or a package."""
    return None if architecture in _other_names() else architecture.removeprefix(_TIMM_PREFIX)


def registering_package(architecture: str) -> str | None:
    """Return the package that registers an architecture; None for one of torchvision or timm."""
    entry = find_parts("backbones").get(architecture)
    return None if entry is None or architecture in models.list_models(module=models) else package_of(entry)


def check_registered(path: str | Path, hparams: Mapping[str, Any]) -> None:
    """Check that the network of a checkpoint is registered, if it is that of a package.

    Args:
        path: The checkpoint, for messages. It may come from a stranger: nothing is imported or installed by its words.
        hparams: Its hyperparameters.

    Raises:
        ValueError: It is not.
    """
    name, package = hparams["architecture"], hparams.get("package")
    if package is not None and registering_package(name) is None:
        raise ValueError(
            f"{one_line(path)} cannot be read: its network {name} is registered by the package {package}, as the file "
            "says, and by none that is installed: install that package if you trust it"
        )


def _other_names() -> list[str]:
    """Return the names of torchvision, and those that packages register."""
    return [*find_parts("backbones"), *models.list_models(module=models)]


def _check_names(architecture: str, weights: str | Path | None) -> None:
    name = timm_name(architecture)
    if name is not None and (is_installed() or architecture.startswith(_TIMM_PREFIX)):
        if name not in (known := timm_names()):
            others = [] if architecture.startswith(_TIMM_PREFIX) else _other_names()
            raise ValueError(
                f"model.architecture={architecture}: expected the name of a torchvision or timm architecture"
                f"{did_you_mean(name, [*others, *known])}"
            )
    elif name is not None:
        raise ValueError(
            f"model.architecture={architecture}: expected the name of a torchvision architecture"
            f"{did_you_mean(architecture, _other_names())}"
            f" (those of timm need {install_command('timm')})"
        )
    names = _weights_names(architecture)
    if weights is not None and str(weights) not in names and not Path(weights).is_file():
        raise ValueError(
            f"model.weights={weights}: expected a file or one of the weights for {architecture} "
            f"({', '.join(names) or 'none are published'}){did_you_mean(str(weights), names)}"
        )


def build_backbone(architecture: str, weights: str | Path | None, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Build a network without its last linear layer.

    Args:
        architecture: A name in `torchvision.models`, such as "resnet152", or of `flowers.backbones`, or in timm, such
            as "convnext_base.fb_in22k". "timm/resnet50" is that of timm.
        weights: A name of published weights ("DEFAULT", "IMAGENET1K_V1"; with timm, "DEFAULT" or the tag of the
            name), the path of a state dict (.safetensors, or a file from `torch.save`, read without running code in
            it), or None for random weights.
        options: Further keyword arguments of the architecture's builder.

    Returns:
        The backbone, which maps images (B, 3, H, W) to features (B, F), and the feature width F.

    Raises:
        ValueError: A name or an option is unknown, or the weights cannot be downloaded or read, or do not fit the
            architecture.
    """
    _check_names(architecture, weights)
    if weights is None:
        return _build(architecture, None, dict(options))
    network, width = _pretrained(architecture, weights, options)
    return copy.deepcopy(network), width


def _pretrained(architecture: str, weights: str | Path, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    path = Path(weights)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _cached_pretrained(architecture, str(weights), changed, json.dumps(dict(options)))


@functools.lru_cache(maxsize=1)  # the jobs of a multirun start from the same weights
def _cached_pretrained(architecture: str, weights: str, changed: int, options: str) -> tuple[nn.Module, int]:
    return _build(architecture, weights, json.loads(options))


def _build(architecture: str, weights: str | None, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    if (timm := timm_name(architecture)) is not None:
        is_published = weights in timm_weights_names(timm)
        network = create_timm_network(timm, options, pretrained=is_published)
        if weights is not None and not is_published:
            state = convert_state_dict(network, _load_state_dict(architecture, weights))
            _load_weights(network, state, classifier_layers(network), f"model.weights={weights}")
        return network, int(network.head_hidden_size)  # type: ignore[arg-type]
    builder = _builder(architecture)
    if weights is None:
        network = builder(**options)
        name, head = last_linear(architecture, network)
    else:
        state = _load_state_dict(architecture, weights)
        network = _build_on_meta(builder, options)
        name, head = last_linear(architecture, network)
        _load_weights(network, state, (name,), f"model.weights={weights}")
    network.set_submodule(name, nn.Identity())
    return network, head.in_features


def _builder(architecture: str) -> Callable[..., nn.Module]:
    """Return a function of the options that builds the network with random weights."""
    if (timm := timm_name(architecture)) is not None:
        return lambda **options: create_timm_network(timm, options, pretrained=False)
    function: Callable[..., nn.Module]
    if registering_package(architecture) is not None:
        declared_by = function = load_part(find_parts("backbones")[architecture])
    else:
        declared_by = models.get_model_builder(architecture)
        function = functools.partial(models.get_model, architecture, weights=None)
    declared = declared_options(declared_by)

    def build(**options: Any) -> nn.Module:
        try:
            check_options(options, declared)
            return function(**options)
        except (TypeError, ValueError) as error:
            if not options:
                raise
            given = ", ".join(f"{name}: {value}" for name, value in options.items())
            raise ValueError(f"model.options={{{given}}}: {architecture} does not take them: {error}") from error

    return build


def backbone_shapes(
    architecture: str, options: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, torch.Size], int]:
    """Return the shape of each parameter and buffer of a backbone, and its feature width. It takes no memory.

    Args:
        architecture: See `build_backbone`.
        options: See `build_backbone`.
        weights: What a file has for the network. One that is much larger is not built to its end.

    Raises:
        ValueError: A name or an option is unknown, or the network is larger than the weights.
    """
    _check_names(architecture, None)
    builder = _builder(architecture)
    try:
        with (
            _no_larger_than(weights) if options else nullcontext(),
            torch.device("meta"),
        ):  # the size of a name alone is known
            network = builder(**options)
    except (NotImplementedError, RuntimeError):  # RegNet computes its widths with tensors
        with _no_larger_than(weights):
            network = builder(**options)
    if timm_name(architecture) is not None:
        width = int(network.head_hidden_size)  # type: ignore[arg-type]
    else:
        name, head = last_linear(architecture, network)
        network.set_submodule(name, nn.Identity())
        width = head.in_features
    return {name: value.shape for name, value in network.state_dict().items()}, width


@contextmanager
def _no_larger_than(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse to build a network with more parameters than there are weights, but for the classifier that is replaced.

    A file of a few bytes may ask for a network of any size.
    """
    count, numbers = len(weights) + _CLASSIFIER_LAYERS, sum(map(Tensor.numel, weights.values())) + _CLASSIFIER_NUMBERS

    def subtract(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, numbers
        if parameter is not None:
            count, numbers = count - 1, numbers - parameter.numel()
        if min(count, numbers) < 0:
            raise ValueError("the network is larger than its weights")

    hook = register_module_parameter_registration_hook(subtract)
    try:
        yield
    finally:
        hook.remove()


def weights_problem(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> str:
    """Say which weights are missing, too many, or of another shape: how many, and the first three; empty if none."""
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {tuple(found[key])}, expected {tuple(shape)}"
            for key, shape in expected.items()
            if found.get(key, shape) != shape
        ],
    }
    return "; ".join(f"{len(keys)} {kind} ({_abbreviate(keys)})" for kind, keys in problems.items() if keys)


def _build_on_meta(builder: Callable[..., nn.Module], options: Mapping[str, Any]) -> nn.Module:
    """Build a network without values if possible: drawing weights for a ResNet-152 takes a second."""
    try:
        with torch.device("meta"):
            return builder(**options)
    except (NotImplementedError, RuntimeError):  # RegNet computes its widths with tensors
        return builder(**options)


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are real and finite: four times as fast as `isfinite().all()`."""
    if tensor.is_complex() or tensor.is_quantized:  # `load_state_dict` would take the real part, or what it stands for
        return False
    return not tensor.is_floating_point() or not tensor.numel() or bool(tensor.abs().amax().isfinite())


def state_dict_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def find_weights(architecture: str, sources: Sequence[str | Path]) -> str | None:
    """Find pretrained weights in the first of several sources that has them.

    Args:
        architecture: A name in `torchvision.models`.
        sources: Torchvision weights names, which are downloaded, and folders whose files are named after the
            architecture ("resnet18-f37072fd.pth", "resnet18.safetensors").

    Returns:
        The `weights` for `build_backbone`, or None if no source has any.
    """
    for source in map(str, sources):
        files = [path for path in sorted(Path(source).glob(f"{architecture}[-_.]*")) if path.is_file()]
        if files:
            return str(files[0])
        if source in _weights_names(architecture):
            try:
                _download_weights(architecture, source)
                return source
            except ValueError:
                continue  # no network: try the next source
    return None


def local_weights(architecture: str, weights: str) -> str:
    """Return the `weights` for `build_backbone` that need no network: a file, or published weights that are here.

    Raises:
        ValueError: They are not on this machine.
    """
    _check_names(architecture, weights)
    if Path(weights).is_file():
        return weights
    if (timm := timm_name(architecture)) is not None:
        if found := cached_weights(timm):
            return found
        fetch = f"timm; timm.create_model('{timm}', pretrained=True)"
    else:
        entry = models.get_model_weights(architecture)[weights]
        if Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name).is_file():
            return weights
        fetch = f"torchvision; torchvision.models.get_model('{architecture}', weights='{weights}')"
    raise ValueError(
        f"model.weights={weights}: the run started from these weights, which are not on this machine, and a run folder "
        f'starts no download: python -c "import {fetch}" fetches them'
    )


def _weights_names(architecture: str) -> list[str]:
    if (timm := timm_name(architecture)) is not None:
        return timm_weights_names(timm)
    has_none = registering_package(architecture) is not None
    return [] if has_none else list(models.get_model_weights(architecture).__members__)


def last_linear(architecture: str, network: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and the last linear layer of a network, which a head replaces.

    Raises:
        ValueError: It has none.
    """
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError(
            f"model.architecture={architecture}: expected a network with a linear layer to replace: choose another one"
        )
    return linears[-1]


def _load_state_dict(architecture: str, weights: str) -> dict[str, Tensor]:
    if timm_name(architecture) is None and weights in _weights_names(architecture):
        return _download_weights(architecture, weights)
    try:
        if weights.endswith(".safetensors"):
            return dict(load_file(weights))
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.weights={weights}: cannot read the file: {reason}") from error
    except Exception as error:  # pickle.UnpicklingError: a file that would run code
        raise ValueError(f"model.weights={weights}: expected a plain state dict of tensors") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"model.weights={weights}: expected a plain state dict of tensors")
    return state


def _download_weights(architecture: str, weights: str) -> dict[str, Tensor]:
    entry = models.get_model_weights(architecture)[weights]
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"model.weights={weights}: cannot download {entry.url} ({error}): put the file into {folder} by hand, or "
            "give a file with model.weights=PATH, or start from random weights with model.weights=null"
        ) from error


def _load_weights(network: nn.Module, state: Mapping[str, Tensor], heads: Sequence[str], source: str) -> None:
    """Load all weights but those of the last layers, `heads`, which are replaced and may have any size."""
    prefixes = tuple(f"{head}." for head in heads)
    expected = {key: value.shape for key, value in network.state_dict().items() if not key.startswith(prefixes)}
    found = {key: value.shape for key, value in state.items() if not key.startswith(prefixes)}
    # Auxiliary classifiers help only when training from scratch; torchvision drops them from its own weights, too.
    found = {key: shape for key, shape in found.items() if key in expected or not key.startswith(("aux", "AuxLogits"))}
    # Files from before PyTorch 0.4.1 lack num_batches_tracked.
    counters = [key for key in expected if key.endswith("num_batches_tracked")]
    if listed := weights_problem(expected, {key: expected[key] for key in counters} | found):
        raise ValueError(
            f"{source}: the weights do not fit {type(network).__name__} (are they for another architecture?): {listed}"
        )
    if wrong := [key for key, value in state.items() if key in found and not is_finite(value)]:
        raise ValueError(f"{source}: {_abbreviate(wrong)}: some numbers are infinite or missing")
    loaded = network.state_dict()  # carries the version of each module, which MNASNet needs
    for key in expected:
        loaded[key] = state[key].to(loaded[key].dtype).clone() if key in found else torch.tensor(0)
    network.load_state_dict(loaded, assign=True)


def _abbreviate(keys: list[str], limit: int = 3) -> str:
    return ", ".join(one_line(key[:200]) for key in keys[:limit]) + (", …" if len(keys) > limit else "")
