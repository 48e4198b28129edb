"""What a search writes into its folder when it first starts, and resumes from. It imports no Optuna."""

from pathlib import Path
from typing import NamedTuple

import yaml

from flowers.runtime.files import atomic_write_text, read_yaml
from flowers.settings.schema.run_files import SearchStart
from flowers.settings.validation import check_file

SEARCH_FILE = "search.yaml"

# The settings of a search that belong to a start and not to the search: its folder, and a URL with a password.
_UNSAVED = ("sweep.folder=", "sweep.storage=", "hydra", "sweep.settings=", "sweep.options=")


class SearchManifest(NamedTuple):
    """What a search writes into its folder when it first starts."""

    owner: str
    """A random id of the folder, stored with each trial in the study."""
    cwd: str
    settings: list[str]
    """The overrides of the trials."""
    shared: bool
    """Whether `sweep.storage` was given."""
    options: list[str]
    """The overrides of the search itself, such as `sweep.trials=20` and `sweep/sampler=gp`."""

    def save(self, folder: Path) -> None:
        """Write the manifest."""
        options = [line for line in self.options if not line.lstrip("+~").startswith(_UNSAVED)]
        content = yaml.safe_dump(self._replace(options=options)._asdict(), allow_unicode=True)
        atomic_write_text(folder / SEARCH_FILE, content)


def read_manifest(folder: Path) -> SearchManifest | None:
    """Return the manifest of the search in a folder; None if there is none.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / SEARCH_FILE
    if not path.is_file():
        return None
    advice = "start the search again in a new sweep.folder"
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}: {advice}") from error
    check_file(path, content, SearchStart, advice)
    return SearchManifest(**{"options": [], **content})  # a search of an earlier version saved no options
