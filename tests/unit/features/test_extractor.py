import hashlib
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.data.images import READ_VERSION, read_image
from flowers.features.extractor import CACHED, FeatureExtractor, cache_key
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.models.network import Network


@pytest.fixture
def square(folder: Path) -> Path:
    """Make the images square, so that a random crop of the whole area equals the center crop."""
    for path in folder.glob("*/*.png"):
        Image.open(path).resize((64, 64)).save(path)
    return folder


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the size of each batch that passes through a frozen backbone from now on."""
    passes: list[int] = []
    forward = FrozenBackbone.__call__

    def counted(self: FrozenBackbone, images: Tensor) -> Tensor:
        passes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FrozenBackbone, "__call__", counted)
    return passes


def features_of(root: Path, seed: int = 0, view: int | None = None, cache: bool = True, **settings: Any) -> Tensor:
    data = ImageDataModule.from_settings(
        root, image_size=32, resize=32, batch_size=4, num_workers=0, seed=seed, **settings
    )
    torch.manual_seed(0)
    model = Network("resnet18", data.classes).eval()
    dataset = data.dataset("train", augmented=view is not None)
    return FeatureExtractor(data, model, "32-true", CACHED.replace(cache=cache)).extract(dataset, "train", view)


def test_extract_finds_features_of_other_seeds_and_folds_in_the_cache(square: Path, monkeypatch: pytest.MonkeyPatch):
    features_of(square, folds=3, fold=0)
    features_of(square, folds=3, fold=1)  # both folds together hold all images
    features_of(square, folds=3, fold=0, view=1)
    features_of(square, folds=3, fold=1, view=1)
    passes = count_passes(monkeypatch)
    features_of(square, folds=3, fold=2, seed=5)
    features_of(square, folds=3, fold=2, seed=5, view=1)
    assert passes == []
    features_of(square, folds=3, fold=2, view=2)
    features_of(square, crop_scale=(0.1, 0.2), view=1)
    assert len(passes) > 1


def test_extract_returns_the_same_features_from_the_cache(square: Path):
    computed = features_of(square, cache=False)
    for _ in range(2):
        assert torch.equal(features_of(square), computed)


def test_extract_divides_the_images_among_the_processes(square: Path, monkeypatch: pytest.MonkeyPatch):
    expected, passes = features_of(square, cache=False), count_passes(monkeypatch)
    monkeypatch.setattr("flowers.features.extractor.broadcast_object", lambda value: value)
    monkeypatch.setattr("flowers.features.extractor.all_gather_object", lambda value: [value])
    parts = []
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        parts.append(features_of(square, cache=False))
    assert torch.equal(torch.cat(parts), expected)
    assert sum(passes) == 3 * math.ceil(len(expected) / 3)


@pytest.mark.parametrize("name", ["features.extractor.READ_VERSION", "features.extractor.PASS_VERSION"])
def test_cache_key_changes_with_the_versions_of_the_code(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    data = ImageDataModule.from_settings(folder, image_size=32, resize=32)
    model = Network("resnet18", data.classes)
    before = cache_key(data, model, "32-true", None)
    monkeypatch.setattr(f"flowers.{name}", 99)
    assert cache_key(data, model, "32-true", None) != before


def test_pixels_are_those_of_their_version(tmp_path: Path):
    gradient = Image.linear_gradient("L").resize((40, 30))
    colors = Image.merge("RGB", (gradient, gradient.rotate(180), gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    transparent = colors.copy()
    transparent.putalpha(gradient)
    images = [colors, transparent, gradient, colors.quantize(8), colors.convert("CMYK"), gradient.convert("I;16")]
    pixels = b""
    for image in images:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "image.tif", exif=exif)
        read = read_image(io.BytesIO((tmp_path / "image.tif").read_bytes()))  # as a dataset does
        assert read_image(tmp_path / "image.tif") == read
        pixels += read.tobytes()
    found = READ_VERSION, hashlib.sha256(pixels).hexdigest()[:16]
    assert found == (1, "e450aca5ea137939"), "read_image returns other pixels: raise READ_VERSION, and change this line"


def test_extract_without_the_cache_writes_nothing(square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))
    features_of(square, cache=False)
    assert not (tmp_path / "cache" / "features").exists()


def test_all_processes_wait_together_while_another_run_computes(
    square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))
    expected = features_of(square)
    (file,) = (tmp_path / "cache" / "features").rglob("*.safetensors")
    file.unlink()
    lock = FileLock(file.with_name(".lock"))
    lock.acquire()
    sent: list[Any] = []

    def broadcast(value: Any) -> Any:
        sent.append(value)
        if len(sent) == 2:
            lock.release()
        return value

    monkeypatch.setattr("flowers.features.extractor.broadcast_object", broadcast)
    assert torch.equal(features_of(square), expected)
    assert sent[:3] == [None, None, list(range(len(expected)))]
