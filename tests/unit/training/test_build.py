from pathlib import Path

import pytest
import yaml

from flowers.data.datamodule import ImageDataModule
from flowers.data.splits import save_split
from flowers.settings.schema.training import TrainSettings
from flowers.training.build import make_data
from tests.helpers import configuration


@pytest.fixture(name="started")
def start_older_run(folder: Path, tmp_path: Path) -> tuple[Path, TrainSettings]:
    """The folder of a run of a version that made another split and had fewer settings, and the settings now."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    settings = configuration("data=folder", f"data.root={folder}", f"run_dir={run_dir}")
    save_split(ImageDataModule.from_settings(folder, split_seed=7).records, run_dir / "split.csv")
    stored = settings.to_dict()
    for name in ("group_by", "duplicate_threshold"):
        del stored["data"][name]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(stored))
    return run_dir, settings


def test_make_data_keeps_the_split_of_a_run_that_is_resumed(started: tuple[Path, TrainSettings], folder: Path):
    run_dir, settings = started
    assert make_data(settings, run_dir).records == ImageDataModule.from_settings(folder, split_seed=7).records


def test_make_data_makes_another_split_if_a_setting_of_it_has_changed(
    started: tuple[Path, TrainSettings], folder: Path
):
    run_dir, _ = started
    changed = configuration("data=folder", f"data.root={folder}", f"run_dir={run_dir}", "data.split_seed=3")
    assert make_data(changed, run_dir).records == ImageDataModule.from_settings(folder, split_seed=3).records
