"""Search for the settings with the best validation accuracy: `python -m flowers.sweep --help`."""

from collections.abc import Sequence
from pathlib import Path

from flowers.cli import program
from flowers.runtime.extras import require_extra
from flowers.search.manifest import read_manifest
from flowers.settings.config import compose_settings
from flowers.settings.overrides import check_overrides, last_value, quote_override
from flowers.settings.schema.programs import SweepSettings
from flowers.settings.schema.training import TrainSettings


def pack_trial_settings(overrides: Sequence[str]) -> list[str]:
    """Return the search's own overrides, and those of its trials as one: `sweep.settings=[…]`.

    A search that is resumed begins with the own overrides of its first start, which `overrides` may change.

    Raises:
        ValueError: An override sets the folder of a trial, or is wrong; or the search to resume is damaged.
    """
    own = [line for line in overrides if line.lstrip("+~").startswith(("sweep.", "sweep/", "hydra"))]
    settings = [line for line in overrides if line not in own]
    if refused := [line for line in settings if line.startswith(("resume=", "run_dir="))]:
        raise ValueError(f"{refused[0]}: a search sets the folders of its trials: sweep.folder=FOLDER resumes a search")
    settings = check_overrides(settings, "train")
    folder = last_value(own, "sweep.folder")
    manifest = read_manifest(Path(folder)) if folder else None
    if manifest is None:
        compose_settings(settings, TrainSettings)
    own = [*(manifest.options if manifest else []), *own]
    packed = {"sweep.settings": settings, "sweep.options": own}
    return [*own, *(f"{key}=[{','.join(map(quote_override, lines))}]" for key, lines in packed.items())]


def sweep(settings: SweepSettings) -> float:
    """Run the remaining trials of a search; return the best validation accuracy."""
    require_extra("a search", "sweep", "optuna", "sklearn")
    from flowers.search.runner import run_search

    return run_search(settings)


main = program(sweep, SweepSettings, pack_trial_settings)

if __name__ == "__main__":
    main()
