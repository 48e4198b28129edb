"""Networks of timm (https://github.com/huggingface/pytorch-image-models), which is an optional package.

A name is that of a network, and a dot and the tag of its pretrained weights if there are several, as timm writes it:
"convnext_base.fb_in22k". timm is imported when it is first used: that takes seconds.
"""

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flowers.models.network_options import check_options, declared_options
from flowers.runtime.extras import require_extra
from flowers.runtime.text import one_line

_COMMON_OPTIONS = {"drop_rate", "drop_path_rate", "in_chans", "img_size"}  # what `timm.create_model` documents


def is_installed() -> bool:
    """Return whether timm is installed, without importing it."""
    return importlib.util.find_spec("timm") is not None


def timm_names() -> list[str]:
    """Return the names of all networks, also with each tag of pretrained weights.

    Raises:
        ValueError: timm is not installed.
    """
    require_extra("a network of timm", "timm", "timm")
    import timm

    return sorted({*timm.list_models(), *timm.list_pretrained()})


def pretrained_settings(name: str) -> dict[str, Any]:
    """Return what timm says about a name: `tag`, `mean`, `std`, `input_size`, `interpolation`, `crop_pct` and so on.

    Without a tag in the name, these are the settings of the weights that timm prefers.
    """
    import timm

    found = timm.get_pretrained_cfg(name)
    assert found is not None, "names are checked before"
    return {**vars(found), "has_weights": bool(found.has_weights)}


def timm_weights_names(name: str) -> list[str]:
    """Return the names that `model.weights` may have: "DEFAULT" and the tag; none if no weights are published."""
    settings = pretrained_settings(name)
    return ["DEFAULT", *([settings["tag"]] if settings["tag"] else [])] if settings["has_weights"] else []


def create_timm_network(name: str, options: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """Create a network without its classifier: it maps images (B, 3, H, W) to features (B, F).

    F is its attribute `head_hidden_size`.

    Raises:
        ValueError: An option is unknown, or the weights cannot be downloaded.
    """
    import timm

    if pretrained:
        _check_download(name)
    try:
        check_options(options, declared_options(timm.model_entrypoint(name)) | _COMMON_OPTIONS)
        network = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # huggingface_hub and httpx have their own errors, which have no common base
        reason = one_line((str(error).splitlines() or [type(error).__name__])[0])
        if pretrained:
            raise _download_error(name, reason) from error
        if not options:
            raise
        given = ", ".join(f"{key}: {value}" for key, value in options.items())
        raise ValueError(f"model.options={{{given}}}: {name} does not take them: {reason}") from error
    assert isinstance(network, nn.Module)
    return network


def cached_weights(name: str) -> str | None:
    """Return the file of the published weights of a name in the cache of Hugging Face; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    settings = pretrained_settings(name)
    hub, file = settings["hf_hub_id"], settings["hf_hub_filename"]
    names = ([file] if file else ["model.safetensors", "pytorch_model.bin"]) if hub else []
    found = (try_to_load_from_cache(hub, each) for each in names)
    return next((path for path in found if isinstance(path, str)), None)


def _check_download(name: str) -> None:
    """Fail at once without a network: huggingface_hub would try for 48 s, and log ten lines."""
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT

    if not pretrained_settings(name)["hf_hub_id"] or cached_weights(name):
        return
    try:
        get_session().head(ENDPOINT, timeout=20)
    except Exception as error:  # those of httpx
        raise _download_error(name, one_line(error)) from error


def _download_error(name: str, reason: str) -> ValueError:
    return ValueError(
        f"model.weights: cannot download the weights of {name} ({reason}): copy them into the cache of Hugging Face "
        "by hand, or give a file with model.weights=PATH, or start from random weights with model.weights=null"
    )


def classifier_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that `num_classes=0` leaves out."""
    names = network.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    return (names,) if isinstance(names, str) else tuple(names)


def convert_state_dict(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights, perhaps as the authors of the network published them, under the names and in the shapes of timm.

    Position embeddings are resampled to the image size of the network. Weights that are for another network may stay as
    they are.
    """
    # What timm itself calls when it downloads weights, in each of its modules where the names of the authors differ.
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return state if convert is None else dict(convert(dict(state), network))
    except (KeyError, AttributeError, RuntimeError, IndexError, ValueError, TypeError, AssertionError):
        return state
