"""Search for the settings that are best on validation: `python -m flowers.sweep --help`."""

from collections.abc import Sequence

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runtime.config import check_overrides, quote_override


def arguments(given: Sequence[str]) -> list[str]:
    """Keep the search's own overrides, and pack those of its trials into one: `sweep.settings=[…]`."""
    own = [line for line in given if line.lstrip("+~").startswith(("sweep.", "sweep/", "hydra"))]
    settings = [line for line in given if line not in own]
    if refused := [line for line in settings if line.startswith(("resume=", "run_dir="))]:
        raise ValueError(f"{refused[0]}: a search gives its trials their folders: sweep.folder=FOLDER goes on with one")
    settings = check_overrides(settings, "train")
    return [*own, f"sweep.settings=[{','.join(map(quote_override, settings))}]"]


def sweep(cfg: DictConfig) -> float:
    """Run the trials that are left of a search; return the best validation accuracy."""
    try:
        from flowers.search.runner import run_search
    except ImportError as error:
        raise ValueError(f"a search needs {error.name}: pip install 'flowers[sweep]'") from error

    return run_search(cfg)


main = program(sweep, "sweep", arguments)

if __name__ == "__main__":
    main()
