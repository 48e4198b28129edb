from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.data.splits import save_split
from flowers.training.experiment import run_training
from tests.helpers import SMALL as TRAINING
from tests.helpers import configuration

SMALL: dict[str, Any] = {"image_size": 32, "resize": 36, "batch_size": 4, "num_workers": 0}


def train_epoch(data: ImageDataModule, epoch: int) -> Tensor:
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return torch.cat([images for images, _ in loader])


def test_batches_are_uint8_images_and_class_numbers_in_alphabetical_order(folder: Path):
    data = ImageDataModule.from_settings(folder, **SMALL)
    images, labels = next(iter(data.val_dataloader()))
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 32, 32), torch.uint8, torch.int64)
    assert data.classes == ["lily", "orchid"]
    assert labels.tolist() == [data.classes.index(record.label) for record in data.records if record.split == "val"]


def test_train_epoch_depends_on_seed_and_epoch_but_not_on_workers(folder: Path):
    first = train_epoch(ImageDataModule.from_settings(folder, **SMALL), 0)
    assert torch.equal(first, train_epoch(ImageDataModule.from_settings(folder, **SMALL | {"num_workers": 2}), 0))
    assert not torch.equal(first, train_epoch(ImageDataModule.from_settings(folder, **SMALL), 1))
    assert not torch.equal(first, train_epoch(ImageDataModule.from_settings(folder, **SMALL, seed=1), 0))


def test_augmentation_does_not_change_the_global_generator(folder: Path):
    before = torch.get_rng_state()
    train_epoch(ImageDataModule.from_settings(folder, **SMALL), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_full_dataset_has_center_crops_of_all_images(folder: Path):
    wide = Image.new("RGB", (200, 100), "white")
    wide.paste("black", (50, 0, 150, 100))
    for label in ("lily", "orchid"):
        wide.save(folder / label / "00wide.png")
    data = ImageDataModule.from_settings(folder, on_corrupt="skip", **SMALL | {"resize": 32})
    dataset = data.full_dataset(["lily", "orchid"])
    assert all("wide" not in path for path in data.dataset("train").paths)  # the same image in two classes
    image, _ = dataset[[Path(path).name for path in dataset.paths].index("00wide.png")]
    assert image.float().mean() < 5


def test_full_dataset_refuses_a_class_that_the_model_does_not_have(folder: Path):
    with pytest.raises(ValueError, match=r"has the class.* orchid: expected only classes of the model: lily, rose"):
        ImageDataModule.from_settings(folder).full_dataset(["lily", "rose"])


def test_dataset_of_an_empty_split_is_an_error(folder: Path):
    with pytest.raises(ValueError, match=r"the split test has no images: set .*data.test_fraction"):
        ImageDataModule.from_settings(folder).dataset("test")


def test_setup_says_that_val_has_no_images_before_any_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    data = ImageDataModule.from_settings(folder, **SMALL, val_fraction=0.0)
    assert data.counts("train") == {"lily": 10, "orchid": 10}
    monkeypatch.setattr("flowers.data.dataset.read_image", None)
    with pytest.raises(ValueError, match=r"the split val has no images: set .*data.val_fraction"):
        data.setup("fit")
    data.setup("test")


def test_training_says_that_val_has_no_images_before_it_writes_anything(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="the split val has no images"):
        run_training(
            configuration(*TRAINING, "data.val_fraction=0", f"data.root={folder}", f"run_dir={tmp_path / 'run'}")
        )
    assert not list((tmp_path / "run").glob("[!.]*"))


def test_split_file_is_used_and_refused_if_an_image_has_changed(folder: Path, tmp_path: Path):
    records = ImageDataModule.from_settings(folder, split_seed=3).records
    save_split(records, tmp_path / "split.csv")
    assert ImageDataModule.from_settings(folder, split_file=tmp_path / "split.csv").records == records
    (folder / "lily" / "01.png").write_bytes((folder / "lily" / "03.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 of the 20 images .* such as lily/01.png"):
        _ = ImageDataModule.from_settings(folder, split_file=tmp_path / "split.csv").records


def test_class_weights_give_each_class_the_same_total_and_an_image_the_mean_1(folder: Path):
    for path in list((folder / "lily").glob("*.png"))[:7]:
        path.unlink()
    assert ImageDataModule.from_settings(folder).class_weights() is None
    data = ImageDataModule.from_settings(folder, balance="weights")
    assert data.counts("train") == {"lily": 2, "orchid": 8}
    assert data.class_weights() == [10 / (2 * 2), 10 / (2 * 8)]
    order = ImageDataModule.from_settings(folder, balance="sampler").train_sampler([0] * 2 + [1] * 8)
    assert sum(index < 2 for index, _ in order) == 5
    assert sum(index < 2 for index, _ in data.train_sampler([0] * 2 + [1] * 8)) == 2


def test_transform_settings_are_those_that_determine_pixels():
    settings = ImageDataModule.from_settings(
        "images", image_size=32, resize=40, crop_scale=(0.3, 1.0), seed=7, batch_size=3
    )
    assert settings.transform_settings() == {"version": 1, "image_size": 32, "resize": 40}
    bicubic = ImageDataModule.from_settings("images", image_size=32, resize=40, interpolation="bicubic")
    assert bicubic.transform_settings() == settings.transform_settings() | {"interpolation": "bicubic"}
    assert settings.transform_settings(augmented=True) == {
        "version": 1,
        "image_size": 32,
        "resize": 40,
        "crop_scale": [0.3, 1.0],
        "crop_ratio": [0.75, 1.333],
        "hflip_prob": 0.5,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.02,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 1.5}, r"data\.val_fraction=1\.5: expected a number from 0 to below 1"),
        ({"test_fraction": -0.1}, r"data\.test_fraction=-0\.1: expected a number from 0 to below 1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"data\.test_fraction=0\.5: expected a sum below 1"),
        ({"folds": 1}, r"data\.folds=1: expected 0 .* or at least 2"),
        ({"folds": 5, "fold": 5}, r"data\.fold=5: expected a number from 0 to 4"),
        ({"split_file": "missing.csv"}, r"missing\.csv cannot be read \(No such file.*data\.split_file"),
        ({"on_corrupt": "mend"}, r"data\.on_corrupt=mend: expected error or skip"),
        ({"image_size": 0}, r"data\.image_size=0: expected a whole number from 1"),
        ({"image_size": 300}, r"data\.resize=256: expected at least data\.image_size=300"),
        ({"crop_scale": [0.5, 1.5]}, r"data\.crop_scale=\[0\.5,1\.5\]: expected \[smallest, largest\]"),
        ({"crop_scale": 0.5}, r"data\.crop_scale=0\.5: expected \[smallest, largest\]"),
        ({"crop_ratio": [1.3, 0.7]}, r"data\.crop_ratio=\[1\.3,0\.7\]: expected \[smallest, largest\]"),
        ({"hflip_prob": 2}, r"data\.hflip_prob=2: expected a number from 0 to 1"),
        ({"brightness": -1}, r"data\.brightness=-1: expected a number, at least 0"),
        ({"contrast": float("nan")}, r"data\.contrast=nan: expected a number, at least 0"),
        ({"saturation": -1}, r"data\.saturation=-1: expected a number, at least 0"),
        ({"hue": 0.6}, r"data\.hue=0\.6: expected a number from 0 to 0\.5"),
        ({"balance": "weight"}, r"data\.balance=weight: expected one of none, weights, sampler: did you mean weights"),
        (
            {"balance": "sampler", "packed": True},
            r"data\.balance=sampler with data=shards: expected data\.balance=weights",
        ),
        ({"batch_size": 0}, r"data\.batch_size=0: expected a whole number, at least 1"),
        ({"num_workers": -1}, r"data\.num_workers=-1: expected a whole number, at least 0, or null"),
        ({"decoded_cache_fraction": 1}, r"data\.decoded_cache_fraction=1: expected a number, at least 0 and below 1"),
        ({"retry_timeout": -1}, r"data\.retry_timeout=-1: expected a number, at least 0"),
        ({"cache_gb": 0}, r"data\.cache_gb=0: expected a number, above 0"),
        ({"shuffle_shards": 0}, r"data\.shuffle_shards=0: expected a whole number, at least 1"),
        ({"root": "https://example.org/images"}, r"expected a folder; an address needs data=shards"),
        ({"root": "ftp://example.org/images", "packed": True}, r"starts with http, https, s3"),
    ],
)
def test_constructor_refuses_invalid_arguments_before_it_reads_or_downloads(settings: dict[str, Any], message: str):
    def source(root: Path) -> None:
        raise AssertionError("downloaded")

    arguments: dict[str, Any] = {"root": "missing", "source": source} | settings
    with pytest.raises(ValueError, match=message):
        ImageDataModule.from_settings(**arguments)
