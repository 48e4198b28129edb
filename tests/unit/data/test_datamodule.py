from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.data.samplers import EpochSampler
from flowers.data.splits import save_split
from flowers.runtime.seeding import PADDING_INDEX

SMALL: dict[str, Any] = {"image_size": 32, "resize": 36, "batch_size": 4, "num_workers": 0}


def epoch(data: ImageDataModule, number: int) -> Tensor:
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(number)  # type: ignore[union-attr]
    return torch.cat([photos for photos, _ in loader])


def test_batches_are_uint8_photos_with_labels_in_the_order_of_the_classes_names(folder: Path):
    data = ImageDataModule(folder, **SMALL)
    photos, labels = next(iter(data.val_dataloader()))
    assert (photos.shape, photos.dtype, labels.dtype) == ((4, 3, 32, 32), torch.uint8, torch.int64)
    assert data.classes == ["lily", "orchid"]
    assert labels.tolist() == [data.classes.index(row.label) for row in data.records if row.split == "val"]


def test_an_epoch_is_the_same_again_and_unlike_the_next_whatever_the_workers(folder: Path):
    first = epoch(ImageDataModule(folder, **SMALL), 0)
    assert torch.equal(first, epoch(ImageDataModule(folder, **SMALL | {"num_workers": 2}), 0))
    assert not torch.equal(first, epoch(ImageDataModule(folder, **SMALL), 1))
    assert not torch.equal(first, epoch(ImageDataModule(folder, **SMALL, seed=1), 0))


def test_augmentation_leaves_the_global_generator_alone(folder: Path):
    before = torch.get_rng_state()
    epoch(ImageDataModule(folder, **SMALL), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_photos_are_the_centre_of_the_resized_photo(folder: Path):
    grey = Image.new("RGB", (200, 100), "white")
    grey.paste("black", (50, 0, 150, 100))
    for label in ("lily", "orchid"):
        grey.save(folder / label / "00wide.png")
    data = ImageDataModule(folder, on_corrupt="skip", **SMALL | {"resize": 32})
    dataset = data.full_dataset(["lily", "orchid"])
    assert all("wide" not in path for path in data.dataset("train").paths)  # one photo under two classes
    photo, _ = dataset[[Path(path).name for path in dataset.paths].index("00wide.png")]
    assert photo.float().mean() < 5


def spoil(folder: Path) -> None:
    (folder / "lily" / "empty.jpg").write_bytes(b"")
    (folder / "orchid" / "text.jpg").write_text("no photo", encoding="utf-8")


def test_all_bad_photos_are_named_at_once(folder: Path):
    spoil(folder)
    with pytest.raises(ValueError, match=r"2 of 22 files (.|\n)*lily/empty.jpg: empty(.|\n)*orchid/text.jpg: not a"):
        _ = ImageDataModule(folder).rows


def test_bad_photos_are_skipped_where_that_is_wanted(folder: Path, caplog: pytest.LogCaptureFixture):
    spoil(folder)
    assert len(ImageDataModule(folder, on_corrupt="skip").rows) == 20
    assert "lily/empty.jpg: empty" in caplog.text


def test_a_class_without_a_single_good_photo_is_an_error_and_not_forgotten(folder: Path):
    (folder / "rose").mkdir()
    (folder / "rose" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no photo is left of the class.* rose"):
        _ = ImageDataModule(folder, on_corrupt="skip").rows


def test_one_photo_under_two_classes_is_left_out_and_named(folder: Path, caplog: pytest.LogCaptureFixture):
    content = (folder / "lily" / "01.png").read_bytes()
    (folder / "orchid" / "twin.png").write_bytes(content)
    paths = {row.path for row in ImageDataModule(folder).rows}
    assert len(paths) == 19
    assert not paths & {"lily/01.png", "orchid/twin.png"}
    assert "lily/01.png, orchid/twin.png" in caplog.text


def test_a_split_given_by_folders_is_taken_and_its_leaks_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    given = tmp_path / "given"
    for path in folder.glob("*/*.png"):
        side = "val" if path.stem in ("00", "01") else "train"
        (given / side / path.parent.name).mkdir(parents=True, exist_ok=True)
        (given / side / path.parent.name / path.name).write_bytes(path.read_bytes())
    data = ImageDataModule(given)
    assert (data.counts("train").total(), data.counts("val").total()) == (18, 2)
    (given / "val" / "lily" / "again.png").write_bytes((folder / "lily" / "03.png").read_bytes())
    assert ImageDataModule(given).counts("val").total() == 3
    assert "1 photos with a double on another side" in caplog.text


def test_a_split_file_is_taken_as_given_and_refused_where_a_photo_has_changed(folder: Path, tmp_path: Path):

    rows = ImageDataModule(folder, split_seed=3).rows
    save_split(rows, tmp_path / "split.csv")
    assert ImageDataModule(folder, split_file=tmp_path / "split.csv").rows == rows
    (folder / "lily" / "01.png").write_bytes((folder / "lily" / "03.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 of the 20 photos .* such as lily/01.png"):
        _ = ImageDataModule(folder, split_file=tmp_path / "split.csv").rows


def test_photos_of_a_class_that_the_model_does_not_know_are_refused(folder: Path):
    with pytest.raises(ValueError, match=r"has the class.* orchid: wanted those of the model, lily, rose"):
        ImageDataModule(folder).full_dataset(["lily", "rose"])


@pytest.mark.parametrize("wrong", [{"on_corrupt": "mend"}, {"image_size": 300}, {"batch_size": 0}])
def test_settings_that_cannot_be_are_refused(folder: Path, wrong: dict[str, object]):
    with pytest.raises(ValueError, match="wanted"):
        ImageDataModule(folder, **wrong)  # type: ignore[arg-type]


def test_processes_that_train_together_share_an_epoch_and_take_as_many():
    whole = dict(EpochSampler(7, seed=0))
    shares = [list(EpochSampler(7, seed=0, rank=rank, ranks=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    taken = sorted(key for share in shares for key in share)
    assert taken == [(PADDING_INDEX, 0)] * 2 + sorted(whole.items())
