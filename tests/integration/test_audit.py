import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from flowers.audit import main
from flowers.data.corrections import Correction, Corrections
from flowers.data.datamodule import ImageDataModule
from flowers.data.splits import save_split
from flowers.runtime.text import read_csv
from flowers.studies.auditor import AUDIT_COLUMNS
from tests.helpers import configuration


def audit(*overrides: str) -> int:
    return int(main(configuration(*overrides, name="audit")))


def page_data(page: Path) -> dict[str, Any]:
    return dict(json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[0]))


@pytest.fixture(name="cache", autouse=True)
def use_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))


def test_audit_writes_a_table_and_a_page_and_leaves_the_photos_alone(painted: Path, tmp_path: Path, capsys):
    root = Path(shutil.copytree(painted, tmp_path / "photos"))
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    first = sorted((root / classes[0]).iterdir())[0]
    hostile = root / "=<img src=x onerror=alert(1)>"  # a class
    hostile.mkdir()
    for number, photo in enumerate(sorted((root / classes[1]).iterdir())[:3]):
        shutil.move(photo, hostile / f"@{number}.png")
    shutil.copy(first, root / classes[2] / "copy.png")
    before = {path: path.read_bytes() for path in root.glob("*/*")}
    small = ["model=resnet18", "model.weights=null", "image_size=32", "accelerator=cpu", "folds=3"]
    shutil.move(root, tmp_path / "parts" / "photos")  # the folder of a part, whose subfolders are the classes
    audit(f"photos={tmp_path / 'parts'}", "layout=subfolders", *small, f"output={tmp_path}/a")
    shutil.move(tmp_path / "parts" / "photos", root)
    assert {path: path.read_bytes() for path in root.glob("*/*")} == before
    assert "conflict" in capsys.readouterr().out

    header, *rows = read_csv(tmp_path / "a" / "audit.csv")
    assert tuple(header) == AUDIT_COLUMNS
    assert {rows[0][0], rows[1][0]} == {first.relative_to(tmp_path).as_posix(), f"photos/{classes[2]}/copy.png"}
    assert rows[0][1] == "conflict"
    assert sum(row[1] == "label" for row in rows) == len(before)
    text = (tmp_path / "a" / "audit.csv").read_text(encoding="utf-8")
    assert not re.search(r"(^|,|\n)\"?[=@]", text)
    page = (tmp_path / "a" / "audit.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert len(re.findall("<script", page)) == 2  # the data and the script of the page
    assert page_data(tmp_path / "a" / "audit.html")["classes"][0] == hostile.name


def test_audit_of_a_run_takes_its_photos_and_corrections(trained: Path, tmp_path: Path, capsys):
    audit(f"run={trained}", "folds=2", "max_photos=5", f"output={tmp_path}/a")
    shown = page_data(tmp_path / "a" / "audit.html")
    assert len(shown["items"]) == 5
    assert shown["omitted"] == 55
    path, label, digest, _ = shown["photos"][shown["items"][0]["photo"]]
    judged = Correction(path, shown["classes"][label], "keep", "", digest)
    Corrections("x", (judged,)).save(tmp_path / "c.csv")
    assert "in place of" not in capsys.readouterr().out
    audit(f"run={trained}", "folds=2", f"corrections={tmp_path}/c.csv", f"output={tmp_path}/a")
    assert "(in place of those of an earlier audit)" in capsys.readouterr().out
    again = page_data(tmp_path / "a" / "audit.html")
    assert again["earlier"] == [[*judged]]
    assert digest not in {again["photos"][item["photo"]][2] for item in again["items"]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to audit: expected photos=FOLDER or run=FOLDER"),
        (["photos=nowhere"], "no folder of images at"),
        (
            ["photos={painted}", "folds=31", "model=resnet18", "model.weights=null", "image_size=32"],
            "expected at least 31",
        ),
    ],
)
def test_audit_names_what_is_wrong(overrides: list[str], message: str, painted: Path):
    with pytest.raises(ValueError, match=message):
        audit(*(override.format(painted=painted) for override in overrides))


def test_corrections_reach_the_data_module(painted: Path, tmp_path: Path):
    plain = ImageDataModule.from_settings(painted)
    moved, gone = plain.records[0], plain.records[-1]
    other = next(label for label in plain.classes if label != moved.label)
    lines = (
        Correction(moved.path, moved.label, "relabel", other, moved.sha256),
        Correction(gone.path, gone.label, "drop", "", gone.sha256),
    )
    Corrections("x", lines).save(tmp_path / "c.csv")
    plain_split = tmp_path / "split.csv"
    save_split(plain.records, plain_split)
    for settings in ({}, {"split_file": plain_split}, {"folds": 3}):
        labels = {
            r.path: r.label
            for r in ImageDataModule.from_settings(painted, corrections=tmp_path / "c.csv", **settings).records
        }
        assert labels[moved.path] == other
        assert gone.path not in labels
        assert len(labels) == len(plain.records) - 1
