"""A folder for a model hub: weights under the names of torchvision or timm, and config.json as timm lays it out.

`timm.create_model("local-dir:FOLDER", pretrained=True)` loads the folder of a network of timm.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from flowers.deploy.model_files import CONFIG_FILE, WEIGHTS_FILE
from flowers.models.network import Network
from flowers.models.published_names import PublishedClassifier, publish, read_published
from flowers.models.timm_backbones import pretrained_settings
from flowers.runs.rejection import Rejection
from flowers.runtime.files import atomic_write, open_regular, read_json, write_json
from flowers.runtime.text import one_line
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.run_files import Hub
from flowers.settings.validation import check_file

_FORMAT = 1


def write_hub_folder(folder: Path, model: Network, calibration: Mapping[str, Any], rejection: Rejection | None) -> None:
    """Write model.safetensors, config.json, and rejection.safetensors if the model rejects images.

    Args:
        folder: An existing folder.
        model: The trained model, in evaluation mode and on the CPU.
        calibration: What config.json holds beside the network and its images: `temperature` and `tta`, which
            `read_hub_folder` needs, the digest of the split, and metrics.
        rejection: What rejects images of none of the classes.

    Raises:
        ValueError: See `publish`.
    """
    published = publish(model)
    pixels = model.preprocessing.to_dict()
    config = {
        "architecture": published.architecture,
        "num_classes": len(model.classes),
        "num_features": model.head.in_features,
        "label_names": model.classes,
        "model_args": published.model_args,
        "pretrained_cfg": _timm_settings(model.hparams["architecture"], published, pixels),
        "library": published.library,
        "classifier": list(published.classifier),
        "pixels": pixels,
        **calibration,
        "format_version": _FORMAT,
    }
    if published.library == "torchvision":
        del config["pretrained_cfg"]
    content = safetensors.torch.save(published.state_dict, {"format": "pt"})
    with atomic_write(folder / WEIGHTS_FILE, len(content)) as part:
        part.write_bytes(content)
    if rejection is not None:
        rejection.save(folder)
    write_json(config, folder / CONFIG_FILE)


def _timm_settings(architecture: str, published: PublishedClassifier, pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Return `pretrained_cfg` as `timm.models.save_for_hf` writes it."""
    if published.library == "torchvision":
        return {}
    source = pretrained_settings(architecture.removeprefix("timm/"))
    classifier, size = source["classifier"], pixels["image_size"]
    crop = size / pixels["resize"]
    if math.floor(size / crop) < pixels["resize"]:  # timm rounds down
        crop = math.nextafter(crop, 0)
    return {
        "tag": "flowers",
        "custom_load": False,
        "input_size": [3, size, size],
        "fixed_input_size": bool(source["fixed_input_size"]),
        "interpolation": pixels["interpolation"],
        "crop_pct": crop,
        "crop_mode": "center",
        "mean": list(pixels["mean"]),
        "std": list(pixels["std"]),
        "first_conv": source["first_conv"],
        "classifier": classifier,
    }


def read_hub_folder(folder: Path) -> tuple[Network, dict[str, Any]]:
    """Return the model, in evaluation mode on the CPU, and the content of config.json. This runs no code in the files.

    Raises:
        ValueError: A file is damaged or of a later format, or the files do not fit each other.
    """
    config = read_json(folder / CONFIG_FILE)
    if config.get("format_version") != _FORMAT:
        found = one_line(str(config.get("format_version", "missing"))[:20])
        raise ValueError(
            f"{folder / CONFIG_FILE}: its format_version is {found}, expected {_FORMAT}, as formats=[hub] of "
            "flowers.export writes it"
        )
    check_file(folder / CONFIG_FILE, config, Hub)
    try:
        with open_regular(folder / WEIGHTS_FILE):
            state = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} cannot be read: it is damaged") from error
    published = PublishedClassifier(
        config["library"], config["architecture"], config["model_args"], tuple(config["classifier"]), state
    )
    try:
        digest, preprocessing = config["split_digest"], Preprocessing.from_dict(config["pixels"])
        split_digest = digest["split"] if isinstance(digest, dict) else digest
        return read_published(published, config["label_names"], preprocessing, split_digest), config
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from error
