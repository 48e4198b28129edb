"""Write a new experiment: a short, commented file that sets what differs from the defaults of flowers.train."""

import re
from pathlib import Path

from flowers.settings.config_reference import find_config_file, options_of, settings_of

_CHOSEN = {"model": "a network", "optimizer": "an optimizer", "scheduler": "a learning-rate schedule"}
_KEYS = (
    "data.image_size",
    "data.batch_size",
    "optimizer.lr",
    "head.epochs",
    "finetune.epochs",
    "finetune.backbone_lr",
)
_NOT_NAMES = ("null", "true", "false", "nan", "inf")  # they are values of their own on the command line
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


def write_experiment(name: str) -> Path:
    """Write conf/experiment/NAME.yaml below the working directory, with the defaults as its values.

    Returns:
        The path of the file.

    Raises:
        ValueError: The name cannot be given as `experiment=NAME`, or there is such an experiment.
        OSError: The file cannot be written.
    """
    if not _NAME.fullmatch(name) or name.lower() in _NOT_NAMES:
        raise ValueError(
            f"{name!a}: not a name of an experiment: expected a letter, then at most 99 letters, digits, - or _"
        )
    if name in options_of("experiment"):
        raise ValueError(f"{find_config_file(f'experiment/{name}')} exists already: choose another name")
    path = Path("conf/experiment") / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = experiment_text(name)
    with path.open("x", encoding="utf-8") as file:  # fails if the file exists
        file.write(text)
    return path


def experiment_text(name: str) -> str:
    """Return the content of a new experiment."""
    settings = {each.key: each for each in settings_of("train")}
    for group in ("data/folder", "optimizer/adamw"):
        settings |= {each.key: each for each in settings_of(group)}
    lines = [
        "# @package _global_",
        f"# flowers train experiment={name}",
        "# Say here what this experiment changes, and the result that its command reached.",
        "# Leave out what stays as it is: flowers train --help lists all keys with their defaults.",
        "defaults:",
    ]
    options = {"model": "resnet50", "optimizer": "adamw", "scheduler": "cosine"}
    lines += [
        f"  - override /{group}: {option}  # {_CHOSEN[group]}: flowers train --help lists the others"
        for group, option in options.items()
    ]
    lines.append("")
    groups = dict.fromkeys(key.partition(".")[0] for key in _KEYS)
    for group in groups:
        lines.append(f"{group}:")
        for key in _KEYS:
            if key.startswith(f"{group}."):
                setting = settings[key]
                text = setting.text.partition(". ")[0]
                lines.append(f"  {key.partition('.')[2]}: {setting.default}  # {text[0].lower()}{text[1:]}")
    return "\n".join(lines) + "\n"
