from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers.data.sources.folder import FolderSource
from flowers.data.splitter import Splitter


def test_split_leaves_out_a_photo_that_is_a_png_in_one_class_and_a_jpeg_in_another(
    folder: Path, photo, caplog: pytest.LogCaptureFixture
):
    photo(3).resize((90, 75)).save(folder / "orchid" / "again.jpg", quality=70)
    source = FolderSource(folder)
    twin = next(path for path in (folder / "lily", folder / "orchid") for path in path.glob("*03.png"))
    own = f"{twin.parent.name}/{twin.name}"
    again = "orchid/again.jpg" if twin.parent.name == "lily" else "lily/again.jpg"
    if again.startswith("lily"):
        (folder / "orchid" / "again.jpg").rename(folder / again)
        source = FolderSource(folder)
    records = Splitter().split(source)
    assert {own, again}.isdisjoint({record.path for record in records})
    assert f"several classes: {', '.join(sorted([own, again]))}" in caplog.text
    assert len(records) == 19


def test_split_groups_by_exact_bytes_or_not_at_all(folder: Path, photo):
    first = next(folder.glob("lily/*.png"))
    (folder / "lily" / "twin.png").write_bytes(first.read_bytes())
    Image.open(first).save(folder / "lily" / "again.jpg", quality=70)
    sizes = {
        group_by: max(
            Counter(record.group for record in Splitter(group_by=group_by).split(FolderSource(folder))).values()
        )
        for group_by in ("auto", "exact", "none")
    }
    assert sizes == {"auto": 3, "exact": 2, "none": 1}


def test_split_says_which_class_has_one_large_group_and_what_helps(
    folder: Path, photo, caplog: pytest.LogCaptureFixture
):
    generator = np.random.default_rng(0)
    (folder / "rose").mkdir()
    for number in range(12):
        copy = np.asarray(photo(50)) + generator.integers(0, 2, (1, 1, 3))
        Image.fromarray(copy.clip(0, 255).astype(np.uint8)).save(folder / "rose" / f"{number}.png")
    photo(51).save(folder / "rose" / "other.png")
    records = Splitter().split(FolderSource(folder))
    assert Counter(record.split for record in records if record.label == "rose")["val"] == 1
    assert "class rose: val has 1 of its 13 images, not 3: 12 of them (92%)" in caplog.text
    assert "data.group_by=exact" in caplog.text
