"""Check the paths on a command line before the imports of a program, which take seconds."""

from collections.abc import Sequence
from pathlib import Path

from flowers.data.sources.layout import check_root
from flowers.data.sources.listing import expand_image_paths
from flowers.data.sources.tables import check_exists, is_table
from flowers.runs.run_folder import require_run_dir
from flowers.settings.schema.programs import (
    AuditSettings,
    EvaluateSettings,
    ExplainSettings,
    PackSettings,
    PredictSettings,
)
from flowers.settings.schema.training import Folder, Table, TrainSettings
from flowers.settings.schema.values import TABLE_SUFFIXES, Group


def check_given_paths(settings: Group) -> None:
    """Check that the run and the photos that settings name are there. What is in them, the program itself checks.

    Raises:
        ValueError: There is no such run, folder or file.
    """
    run = getattr(settings, "run", None)
    if run and not Path(run).exists():
        require_run_dir(run)
    if isinstance(settings, TrainSettings):
        data = settings.data
        if isinstance(data, Folder) and data.source is None and "://" not in data.root:
            check_root(Path(data.root))
        elif isinstance(data, Table) and not settings.resume:  # which reads split.csv
            check_exists(data.table)
    elif isinstance(settings, (EvaluateSettings, AuditSettings, PackSettings)):
        if settings.photos and Path(settings.photos).suffix.lower() in TABLE_SUFFIXES:
            check_exists(settings.photos)
        elif settings.photos and not is_table(settings.photos):
            check_root(Path(settings.photos))
    elif isinstance(settings, (PredictSettings, ExplainSettings)):
        for name in _listed(settings.photos):
            if not Path(name).exists():  # perhaps a glob
                expand_image_paths(name)


def _listed(photos: str | Sequence[str]) -> Sequence[str]:
    return [photos] if isinstance(photos, str) else photos
