"""Grayscale photos of more than 8 bits, from a folder to the pixels of a data module."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowers.data.datamodule import ImageDataModule
from flowers.data.packing import run_packing
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.programs import PackedFolder, PackSettings

SETTINGS: dict[str, Any] = {
    "image_size": 32,
    "resize": 32,
    "num_workers": 0,
    "batch_size": 4,
    "decoded_cache_fraction": 0.0,
}
SPLIT: dict[str, Any] = {"val_fraction": 0.5, "test_fraction": 0.0, "folds": 0, "fold": 0, "split_seed": 0}


def make_folder(root: Path, peaks: dict[str, int], dtype: type = np.uint16) -> Path:
    """Make a folder of photos of one gray each, named by it, with a stripe of the largest value."""
    for number, (name, peak) in enumerate(peaks.items()):
        folder = root / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, peak, (40, 40))
        values[:4], values[20:] = peak, 200
        Image.fromarray(values.astype(dtype)).save(folder / f"{name}.png")
    return root


def data_of(root: Path, **settings) -> ImageDataModule:
    return ImageDataModule.from_settings(root, **SETTINGS | SPLIT | {"bit_depth": "auto"} | settings)


def grays(data: ImageDataModule) -> set[int]:
    """Return how bright the value 200 is in the photos."""
    dataset = data.full_dataset(["a", "b"])
    return {int(dataset[index][0][0, 28, 16]) for index in range(len(dataset))}


@pytest.mark.parametrize("peak", [255, 900, 4000, 16_000, 60_000])
def test_data_gives_a_gray_the_same_brightness_in_every_photo(tmp_path: Path, peak: int):
    root = make_folder(tmp_path / "photos", {"dark": 220, "bright": peak, "middle": 240, "other": 250})
    data = data_of(root)
    depth = next(bits for bits in (8, 10, 12, 14, 16) if peak < 2**bits)
    assert data.bit_depth == depth
    assert grays(data) == {round(200 / (2**depth - 1) * 255)}
    assert data.transform_settings()["bit_depth"] == depth


def test_data_of_8_bits_has_no_bit_depth_and_keeps_its_cache_key(tmp_path: Path):
    root = make_folder(tmp_path / "photos", {"a": 220, "b": 255, "c": 200, "d": 240}, np.uint8)
    data = data_of(root)
    assert data.bit_depth is None
    assert "bit_depth" not in data.transform_settings(augmented=True)


def test_data_without_the_setting_lets_each_file_decide_as_before(tmp_path: Path):
    root = make_folder(tmp_path / "photos", {"a": 255, "b": 256, "c": 250, "d": 240})
    data = data_of(root, bit_depth=None)
    assert grays(data) == {200, 1}
    assert "bit_depth" not in data.transform_settings()


def test_data_takes_the_bit_depth_that_is_given_and_says_what_is_nearly_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    root = make_folder(tmp_path / "photos", {"a": 255, "b": 4000, "c": 250, "d": 240})
    data = data_of(root, bit_depth=16)
    with caplog.at_level(logging.WARNING):
        assert grays(data) == {1}
        assert grays(data) == {1}
    (line,) = [each.getMessage() for each in caplog.records if "nearly black" in each.getMessage()]
    assert line.startswith("data.bit_depth=16: 4 of 4 grayscale photos")


def test_shards_keep_the_bit_depth_of_the_photos_that_were_packed(tmp_path: Path):
    root = make_folder(tmp_path / "photos", {"a": 255, "b": 4000, "c": 250, "d": 240})
    others: dict[str, Any] = {"split_file": None, "corrections": None, "on_corrupt": "error", "layout": "auto"}
    others |= {"columns": dict.fromkeys(("path", "label", "split", "group"))}
    split = PackedFolder.model_validate(
        SPLIT
        | others
        | {"merge_similar_names": False, "max_megapixels": 1.0}
        | {"group_by": "auto", "duplicate_threshold": 0.6}
    )
    run_packing(PackSettings(photos=str(root), output=str(tmp_path / "shards"), shard_mb=1.0, workers=1, data=split))
    data = ImageDataModule.from_settings(tmp_path / "shards", packed=True, bit_depth="auto", **SETTINGS)
    assert data.bit_depth == 12
    assert grays(data) == {round(200 / 4095 * 255)}


def test_preprocessing_of_an_earlier_version_has_no_bit_depth():
    stored = Preprocessing(bit_depth=12).to_dict()
    assert Preprocessing.from_dict(stored).known_bit_depth == 12
    del stored["bit_depth"]
    assert Preprocessing.from_dict(stored).bit_depth is None
    assert Preprocessing(bit_depth="auto").known_bit_depth is None
