"""Searches for the settings that are best on validation: `python -m flowers.sweep --help`."""

from collections.abc import Sequence

from omegaconf import DictConfig

from flowers import overrides
from flowers.program import program


def arguments(given: Sequence[str]) -> list[str]:
    """The search's own overrides as they stand, and those of its trials as one: `sweep.settings=[…]`."""
    own = [line for line in given if line.lstrip("+~").startswith(("sweep.", "sweep/", "hydra"))]
    settings = [line for line in given if line not in own]
    if refused := [line for line in settings if line.startswith(("resume=", "run_dir="))]:
        raise ValueError(f"{refused[0]}: a search gives its trials their folders: sweep.folder=FOLDER goes on with one")
    settings = overrides.checked(settings, "train")
    return [*own, f"sweep.settings=[{','.join(map(overrides.quoted, settings))}]"]


def sweep(cfg: DictConfig) -> float:
    """Runs the trials that are left of the search that `cfg` describes; returns the best one's accuracy."""
    from pathlib import Path

    from hydra.utils import instantiate

    from flowers import run

    try:
        from flowers import search, standings, trials
    except ImportError as error:
        raise ValueError(f"a search needs {error.name}: pip install 'flowers[sweep]'") from error

    asked, folder = cfg.sweep, Path(cfg.sweep.folder).resolve()
    with search.held(folder) as lock, run.resumable(f"python -m flowers.sweep sweep.folder={folder}"):
        begun = search.begin(folder, list(asked.settings), asked.storage is not None)
        drawing = instantiate(asked.sampler), instantiate(asked.pruner), asked.seed
        study = search.Search(folder, begun, asked.storage, asked.study, *drawing)
        while (trial := study.next(asked.trials)) is not None:
            trials.run(study, trial, run.plain(asked.pruner), lock)
            trials.tidy(study, asked.keep)
        return standings.conclude(study)


main = program(sweep, "sweep", arguments)

if __name__ == "__main__":
    main()
