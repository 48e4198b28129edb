"""Search for the settings with the best validation accuracy: `python -m flowers.sweep --help`."""

from collections.abc import Sequence

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runtime.config import check_overrides, quote_override, require_extra


def pack_trial_settings(overrides: Sequence[str]) -> list[str]:
    """Return the search's own overrides, and those of its trials as one: `sweep.settings=[…]`.

    Raises:
        ValueError: An override sets the folder of a trial.
    """
    own = [line for line in overrides if line.lstrip("+~").startswith(("sweep.", "sweep/", "hydra"))]
    settings = [line for line in overrides if line not in own]
    if refused := [line for line in settings if line.startswith(("resume=", "run_dir="))]:
        raise ValueError(f"{refused[0]}: a search sets the folders of its trials: sweep.folder=FOLDER resumes a search")
    settings = check_overrides(settings, "train")
    return [*own, f"sweep.settings=[{','.join(map(quote_override, settings))}]"]


def sweep(cfg: DictConfig) -> float:
    """Run the remaining trials of a search; return the best validation accuracy."""
    require_extra("a search", "sweep", "optuna", "sklearn")
    from flowers.search.runner import run_search

    return run_search(cfg)


main = program(sweep, "sweep", pack_trial_settings)

if __name__ == "__main__":
    main()
