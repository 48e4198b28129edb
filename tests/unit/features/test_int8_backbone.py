import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.features.extractor import CACHED, FeatureExtractor
from flowers.features.frozen_backbone import FrozenBackbone
from flowers.features.int8_backbone import Int8Backbone, check_int8, load_int8_backbone
from flowers.models.network import Network
from flowers.settings.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def data(painted: Path) -> ImageDataModule:
    return ImageDataModule.from_settings(painted, image_size=32, resize=32, batch_size=16, num_workers=0)


@pytest.fixture(scope="module")
def model(data: ImageDataModule) -> Network:
    torch.manual_seed(0)
    model = Network("resnet18", data.classes, preprocessing=Preprocessing(32, 32), split_digest=data.split_digest)
    model.eval()
    return model.eval()


@pytest.fixture(autouse=True)
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with VNNI. On one without it, ONNX Runtime computes the same, but sums may overflow."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})


@pytest.fixture(scope="module")
def int8(model: Network, data: ImageDataModule) -> Iterator[Int8Backbone]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
        yield load_int8_backbone(model, "32-true", "none", lambda: data)


def images_of(data: ImageDataModule, split: str = "train") -> Tensor:
    return torch.cat([images for images, _ in data.batches(data.dataset(split))])


def test_int8_features_resemble_those_of_pytorch(int8: Int8Backbone, model: Network, data: ImageDataModule):
    images = images_of(data)
    expected, found = FrozenBackbone(model, "32-true")(images), int8(images)
    assert found.dtype == torch.float32
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.15


def test_int8_features_are_the_mean_over_the_views(
    int8: Int8Backbone, data: ImageDataModule, monkeypatch: pytest.MonkeyPatch
):
    images = images_of(data)
    expected = (int8(images) + int8(images.flip(-1))) / 2
    monkeypatch.setattr(int8, "tta", "flip")
    torch.testing.assert_close(int8(images), expected)


def test_int8_features_do_not_depend_on_the_batch(int8: Int8Backbone, data: ImageDataModule):
    images = images_of(data)[:19]
    assert torch.equal(torch.cat([int8(images[:16]), int8(images[16:])]), int8(images))
    assert torch.equal(torch.cat([int8(image[None]) for image in images[:3]]), int8(images)[:3])


def test_second_load_opens_no_image_and_gives_the_same_features(
    int8: Int8Backbone, model: Network, data: ImageDataModule, caplog: pytest.LogCaptureFixture
):
    def open_data() -> ImageDataModule:
        raise AssertionError("the program is in the cache")

    with caplog.at_level(logging.WARNING):
        again = load_int8_backbone(model, "32-true", "none", open_data)
        again.check_agreement(lambda features: torch.zeros(len(features)))
    images = images_of(data, "val")
    assert torch.equal(again(images), int8(images))
    assert [record.getMessage() for record in caplog.records] == [
        f"engine=int8: the same answers as PyTorch for {len(images)} of {len(images)} val images"
    ]


def test_compared_features_are_those_of_val(int8: Int8Backbone, model: Network, data: ImageDataModule):
    images, found = images_of(data, "val"), int8.compared["found"]
    assert len(found) == len(images)
    distances = torch.cdist(int8(images), found)
    assert distances.amin(1).max() < 1e-5
    expected = FrozenBackbone(model, "32-true")(images)[distances.argmin(0)]
    torch.testing.assert_close(int8.compared["expected"], expected)


def test_disagreement_is_refused_with_the_figure(int8: Int8Backbone, monkeypatch: pytest.MonkeyPatch):
    features = torch.arange(200.0)[:, None]
    found = features.clone()
    found[:2] += 1  # 99 % are the same
    monkeypatch.setattr(int8, "compared", {"expected": features, "found": found})
    int8.check_agreement(lambda asked: asked[:, 0])
    found[2] += 1
    message = r"answers 3 of 200 val images differently than PyTorch: agreement 0\.9850, expected at least 0\.99; use"
    with pytest.raises(ValueError, match=message):
        int8.check_agreement(lambda asked: asked[:, 0])


def test_features_of_engines_are_cached_apart(int8: Int8Backbone, model: Network, data: ImageDataModule):
    images = images_of(data, "val")
    expected = {"pytorch": FrozenBackbone(model, "32-true")(images), "int8": int8(images)}
    assert not torch.equal(expected["pytorch"], expected["int8"])
    for engine in ("int8", "pytorch", "int8"):
        extractor = FeatureExtractor(data, model, "32-true", CACHED.replace(engine=engine))
        assert torch.equal(extractor.extract(data.dataset("val"), "val"), expected[engine])


def test_another_backbone_or_split_needs_another_program(int8: Int8Backbone, model: Network, data: ImageDataModule):
    class OpenedError(Exception):
        pass

    def open_data() -> ImageDataModule:
        raise OpenedError

    other_weights, other_split = (
        Network("resnet18", data.classes, preprocessing=Preprocessing(32, 32), split_digest=digest)
        for digest in (data.split_digest, "other")
    )
    other_split.load_state_dict(model.state_dict())
    for other in (other_weights, other_split):
        with pytest.raises(OpenedError):
            load_int8_backbone(other.eval(), "32-true", "none", open_data)


def test_check_names_a_missing_package(monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(ValueError, match=r"engine=int8 needs onnxruntime: pip install 'onnx>="):
        check_int8("cpu")


def test_check_refuses_a_cpu_without_the_instructions_and_another_device(monkeypatch: pytest.MonkeyPatch):
    check_int8("cpu")
    with pytest.raises(ValueError, match="runs on the CPU, found accelerator=cuda: give accelerator=cpu"):
        check_int8("cuda")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": False})
    with pytest.raises(ValueError, match="needs a CPU with VNNI or AMX, found one without: use engine=pytorch"):
        check_int8("cpu")
