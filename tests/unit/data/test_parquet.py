import json
from pathlib import Path
from typing import Any

import pytest

from flowers.data.datamodule import ImageDataModule
from flowers.data.sources.build import build_source
from flowers.data.sources.table import table_root

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

CLASSES = ["lily", "orchid"]


def photos(folder: Path) -> list[tuple[str, str]]:
    return [(path.relative_to(folder).as_posix(), path.parent.name) for path in sorted(folder.rglob("*.png"))]


def write(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> Path:
    table = pyarrow.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


def hub_columns(folder: Path, rows: list[tuple[str, str]], name: str | None = None) -> dict[str, Any]:
    images = [{"bytes": (folder / path).read_bytes(), "path": name or Path(path).name} for path, _ in rows]
    return {"image": images, "label": [CLASSES.index(label) for _, label in rows], "width": [96] * len(rows)}


def images(table: Path, **settings: Any) -> list[tuple[str, str, str]]:
    source = build_source({"table": table, "root": None, **settings})
    return [(image.path, image.label, image.split) for image in source.images]


def test_parquet_with_photos_is_unpacked_once_with_the_names_of_its_classes(folder: Path, tmp_path: Path):
    table = write(tmp_path / "hub" / "all.parquet", hub_columns(folder, photos(folder)), CLASSES)
    own = sorted((Path(path).name, label, "") for path, label in photos(folder))
    assert images(table) == own
    unpacked = tmp_path / "hub" / "all-photos"
    assert table_root(table, None) == unpacked
    for path, _ in photos(folder):
        assert (unpacked / Path(path).name).read_bytes() == (folder / path).read_bytes()
    times = [path.stat().st_mtime_ns for path in sorted(unpacked.iterdir())]
    assert images(table) == own
    assert times == [path.stat().st_mtime_ns for path in sorted(unpacked.iterdir())]
    write(table, hub_columns(folder, photos(folder)[:-2]), CLASSES)
    with pytest.raises(ValueError, match=r"all-photos holds photos of another state of .*all.parquet: delete it"):
        images(table)


def test_unpacking_goes_on_after_an_interruption_and_overwrites_nothing_else(folder: Path, tmp_path: Path):
    table = write(tmp_path / "all.parquet", hub_columns(folder, photos(folder)), CLASSES)
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    with pytest.raises(ValueError, match=r"photos holds something else than the photos of .*set data.root to a new"):
        images(table, root=folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.png")}
    own = images(table)
    for name in ("labels.csv", "01.png"):
        (tmp_path / "all-photos" / name).unlink()
    assert images(table) == own


def test_parquet_files_named_for_splits_are_those_of_the_hub(folder: Path, tmp_path: Path):
    rows = photos(folder)
    write(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", hub_columns(folder, rows[:8]), CLASSES)
    write(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", hub_columns(folder, rows[10:17]), CLASSES)
    last = [*rows[8:10], *rows[17:]]
    write(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet", hub_columns(folder, last), CLASSES)
    found = {path: split for path, _, split in images(tmp_path / "hub")}
    assert found == {Path(path).name: "val" if (path, label) in last else "train" for path, label in rows}


def test_parquet_photos_with_one_name_or_one_that_leads_out_stay_in_the_folder(folder: Path, tmp_path: Path):
    table = write(tmp_path / "hub" / "a.parquet", hub_columns(folder, photos(folder), "../../x/=1.png"), CLASSES)
    found = images(table)
    assert len({path for path, _, _ in found}) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "photos"]
    assert all((tmp_path / "hub" / "a-photos" / path).is_file() for path, _, _ in found)


def test_parquet_without_photos_is_a_table_of_paths(folder: Path):
    columns = {"file": [path for path, _ in photos(folder)], "species": [label for _, label in photos(folder)]}
    table = write(folder / "labels.parquet", {**columns, "boxes": [[1.5]] * 20})
    data = ImageDataModule.from_settings(table=table)
    assert data.records == ImageDataModule.from_settings(folder).records


def test_parquet_with_an_address_in_place_of_a_photo_is_never_fetched(folder: Path, tmp_path: Path):
    columns = hub_columns(folder, photos(folder))
    columns["image"][3] = {"bytes": None, "path": "https://127.0.0.1/1.png"}
    table = write(tmp_path / "hub" / "a.parquet", columns, CLASSES)
    with pytest.raises(ValueError, match="names 1 photos by their addresses"):
        images(table)


def test_a_damaged_parquet_file_is_answered_in_one_line(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"a.parquet is no Parquet file, or a damaged one"):
        images(tmp_path / "a.parquet")
