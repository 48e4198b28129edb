import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowers.runs.run import Run
from flowers.runtime.text import read_csv, write_csv
from flowers.studies.suggestion import suggest_photos
from flowers.suggest import main
from tests.helpers import configuration


def test_suggest_leaves_out_what_the_run_has_and_writes_names_that_are_no_formulas(
    trained: Path,
    painted: Path,
    photo: Callable[..., Image.Image],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    pool = tmp_path / "pool"
    (pool / "below").mkdir(parents=True)
    for number, name in enumerate(["=1+1.png", "a.png", "b.png", "below/c.png"]):
        photo(number).save(pool / name)
    photo(1).save(pool / "again.png", compress_level=0)  # the same pixels as a.png in other bytes
    known = sorted(path for path in painted.rglob("*") if path.is_file())
    shutil.copy(known[0], pool / f"copy{known[0].suffix}")
    with Image.open(known[1]) as image:
        image.save(pool / "near.png")
    (pool / "broken.jpg").write_text("no photo")
    settings = [f"run={trained}", f"pool={pool}", f"output={tmp_path}/next.csv", "count=9", "accelerator=cpu"]
    assert main(configuration(*settings, name="suggest")) == 4
    assert "broken.jpg: not a JPEG" in caplog.text
    assert "left out of the 7 photos of the pool: 1 that the run has, 1 near duplicates of these, 1 near" in caplog.text
    header, *rows = read_csv(tmp_path / "next.csv")
    assert header == ["rank", "path", "class", "probability", "uncertainty"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert {Path(row[1]).name for row in rows} == {"=1+1.png", "a.png", "b.png", "c.png"}
    doubts = [float(row[4]) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert [row.path for row in suggest_photos(Run.open(trained), pool, 9, "margin")] == [row[1] for row in rows]
    page = (tmp_path / "next.html").read_text(encoding="utf-8")
    shown = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    assert [photo[:2] for photo in shown["photos"]] == [[row[1], None] for row in rows]
    assert [shown["classes"][item["suggested"]] for item in shown["items"]] == [row[2] for row in rows]

    labels = tmp_path / "labels.csv"
    write_csv(labels, [shown["columns"], *([photo[0], "rose", photo[2]] for photo in shown["photos"])])
    (tmp_path / "photos" / "rose").mkdir(parents=True)
    (tmp_path / "photos" / "rose" / "a.png").write_text("another photo")
    for _ in range(2):  # the second time, all of them are there
        assert main(configuration(f"labels={labels}", f"output={tmp_path}/photos", name="suggest")) == 4
    copied = sorted((tmp_path / "photos" / "rose").iterdir())
    assert [path.name[:4] for path in copied] == [
        "=1+1",
        "a-" + shown_digest(shown, "a.png")[:2],
        "a.pn",
        "b.pn",
        "c.pn",
    ]
    assert (tmp_path / "photos" / "rose" / "a.png").read_text() == "another photo"
    assert (tmp_path / "photos" / "rose" / "c.png").read_bytes() == (pool / "below" / "c.png").read_bytes()


def shown_digest(shown: dict[str, Any], name: str) -> str:
    return str(next(photo[2] for photo in shown["photos"] if Path(photo[0]).name == name))


def test_suggest_with_nothing_to_label_is_one_line(trained: Path, painted: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="nothing is left to label"):
        main(configuration(f"run={trained}", f"pool={painted}", name="suggest"))
    with pytest.raises(ValueError, match="no photos there: expected a folder of photos without labels"):
        main(configuration(f"run={trained}", f"pool={tmp_path}/none", name="suggest"))
