"""Measure what each part of a recipe adds: `python -m flowers.ablation --help`."""

import re
from collections.abc import Sequence

from flowers.cli import program
from flowers.settings.overrides import check_overrides, quote_override
from flowers.settings.schema.programs import AblationSettings

_OWN = re.compile(r"[+~]*(hydra|recipe|folds|seeds|folder|keep_checkpoints)\b")


def pack_run_settings(overrides: Sequence[str]) -> list[str]:
    """Return the own overrides of an ablation, and those of its runs as one: `settings=[…]`.

    Raises:
        ValueError: An override sets what the ablation sets for each run, or is wrong.
    """
    own = [line for line in overrides if _OWN.match(line)]
    settings = [line for line in overrides if line not in own]
    for line in settings:
        key = line.lstrip("+").partition("=")[0]
        if key in ("resume", "run_dir", "seed", "data.fold", "data.folds"):
            raise ValueError(f"{line}: an ablation sets it for each run: expected folds=, seeds= or folder=")
    return [*own, f"settings=[{','.join(map(quote_override, check_overrides(settings, 'train')))}]"]


def ablation(settings: AblationSettings) -> None:
    """Train what is left of an ablation, and print its table."""
    from flowers.studies.ablation import run_ablation

    run_ablation(settings)


main = program(ablation, AblationSettings, pack_run_settings)

if __name__ == "__main__":
    main()
