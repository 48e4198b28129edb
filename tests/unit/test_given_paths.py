import shutil
from pathlib import Path

import pytest

from flowers.given_paths import check_given_paths
from flowers.runs.run_folder import BEST_CHECKPOINT
from tests.helpers import configuration


def test_check_given_paths_passes_what_is_there(trained: Path, painted: Path, tmp_path: Path):
    shutil.copy(trained / BEST_CHECKPOINT, tmp_path / "mine.ckpt")
    photo = next(painted.glob("*/*"))
    for run in (trained, tmp_path / "mine.ckpt", tmp_path):  # perhaps an exported folder
        for photos in (painted, photo, f"[{photo},{painted}/*/*]"):
            check_given_paths(configuration(f"run={run}", f"photos={photos}", name="predict"))
    for name in ("audit", "pack"):
        check_given_paths(configuration(f"photos={painted}", "output=x", name=name))
    check_given_paths(configuration("data=folder", f"data.root={painted}"))
    check_given_paths(configuration("data=shards", "data.root=https://nowhere.example"))
    check_given_paths(configuration("data=garden", f"data.root={tmp_path}/new"))  # is made


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("train", ["data=folder", "data.root=gone"], "no folder of images at gone"),
        ("predict", ["run=gone", "photos=a"], "run=gone: no run there"),
        ("evaluate", ["run=gone"], "run=gone: no run there"),
        ("audit", ["photos=gone"], "no folder of images at gone"),
        ("pack", ["photos=gone", "output=x"], "no folder of images at gone"),
    ],
)
def test_check_given_paths_names_what_is_not_there(name: str, overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        check_given_paths(configuration(*overrides, name=name))


def test_check_given_paths_names_each_photo(trained: Path, painted: Path):
    for photos in ("gone.jpg", f"[{painted},gone.jpg]", "gone/*.jpg"):
        with pytest.raises(ValueError, match=r"photos=gone.*: no such file"):
            check_given_paths(configuration(f"run={trained}", f"photos={photos}", name="predict"))
