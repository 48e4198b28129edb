from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import BatchSampler

from flowers.data.datamodule import ImageDataModule
from flowers.data.samplers import EpochSampler
from flowers.models.network import Network
from flowers.runs.run_folder import SPLIT_FILE
from flowers.settings.preprocessing import Preprocessing
from flowers.training.experiment import run_training
from flowers.training.input_checks import check_last_batch, explained_input_errors
from flowers.training.stages import FinetuneStage, HeadStage
from tests.helpers import TINY, configuration

SMALL_IMAGES = Preprocessing(image_size=32, resize=32)
ONE_VALUE = "Expected more than 1 value per channel when training, got input size torch.Size([1, 512, 1, 1])"


@pytest.fixture(scope="module")
def network() -> Network:
    return Network("timm/test_resnet", ["a", "b"], preprocessing=SMALL_IMAGES)


def trainer(processes: int = 1, limit: float = 1.0) -> Any:
    return SimpleNamespace(world_size=processes, limit_train_batches=limit)


def images(root: Path, left: int, packed: bool = False) -> ImageDataModule:
    """A data module whose last batch has `left` images, if each batch but the last is full."""
    count = ImageDataModule.from_settings(root, packed=packed).counts("train").total()
    return ImageDataModule.from_settings(root, packed=packed, batch_size=count - left)


class Counted(SimpleNamespace):
    """What counts the training images of a data module."""

    def counts(self, split: str) -> Counter[str]:
        return Counter({split: self.number})


NINE: Any = Counted(number=9, batch_size=3)


def test_check_last_batch_refuses_one_image_before_batch_norm(network: Network, painted: Path):
    data = images(painted, 1)
    with pytest.raises(ValueError, match=rf"a batch has only one, .*: use data\.batch_size={data.batch_size - 1}$"):
        check_last_batch(FinetuneStage(), network, data, trainer())


def test_check_last_batch_refuses_batches_of_one_image(network: Network, painted: Path):
    data = ImageDataModule.from_settings(painted, batch_size=1)
    with pytest.raises(ValueError, match=r"data\.batch_size=1: .*: use data\.batch_size=\d"):
        check_last_batch(FinetuneStage(), network, data, trainer())


def test_check_last_batch_takes_what_can_be_trained(network: Network, painted: Path):
    one = images(painted, 1)
    check_last_batch(FinetuneStage(), network, images(painted, 2), trainer())
    check_last_batch(FinetuneStage(), network, one, trainer(limit=1))  # without the last batch
    check_last_batch(FinetuneStage(), network, one, trainer(limit=0.9))
    check_last_batch(HeadStage(), network, one, trainer())  # whose backbone does not normalize over a batch
    check_last_batch(FinetuneStage(), Network("timm/test_convnext", ["a"], preprocessing=SMALL_IMAGES), one, trainer())
    larger = Network("timm/test_resnet", ["a"], preprocessing=Preprocessing(image_size=64, resize=64))
    check_last_batch(FinetuneStage(), larger, one, trainer())  # with several values of each channel


def test_check_last_batch_takes_shards_whose_batches_are_equal(network: Network, shards: Path):
    check_last_batch(FinetuneStage(), network, images(shards, 1, packed=True), trainer())


def test_check_last_batch_changes_neither_network_nor_random_numbers(network: Network, painted: Path):
    data = images(painted, 1)
    network.train()
    network.head.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes, drawn = [module.training for module in network.modules()], torch.get_rng_state()
    with pytest.raises(ValueError, match="BatchNorm"):
        check_last_batch(FinetuneStage(depth=1), network, data, trainer())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)


@given(st.integers(2, 200), st.integers(1, 64), st.integers(1, 4))
@settings(deadline=None)
def test_the_batch_size_that_is_named_leaves_no_batch_of_one_image(number: int, per_process: int, processes: int):
    data: Any = Counted(number=number, batch_size=per_process * processes)
    network: Any = SimpleNamespace(hparams={"architecture": "net"})
    with (
        pytest.raises(ValueError, match="BatchNorm") as caught,
        explained_input_errors(FinetuneStage(), network, data, trainer(processes)),
    ):
        raise ValueError(ONE_VALUE)
    named = str(caught.value).rpartition("use data.batch_size=")
    if not named[1]:  # no size helps
        assert number <= processes
        return
    size = int(named[2])
    assert size % processes == 0
    order: Any = EpochSampler(number, 0, 0, processes)
    assert min(map(len, BatchSampler(order, size // processes, drop_last=False))) > 1


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            HeadStage(),
            "data.image_size=10: timm/test_resnet does not take images of 10 x 10 pixels: use data.image_size=",
        ),
        (FinetuneStage(), "data.image_size=10: timm/test_resnet does not take images of 10 x 10 pixels: use"),
        (FinetuneStage(epochs=2, image_sizes=[8, 40]), "finetune.image_sizes=[8,40]: .* use 14 in place of 8"),
    ],
)
def test_explained_input_errors_names_the_smallest_size_that_works(stage: Any, expected: str):
    network = Network("timm/test_resnet", ["a"], preprocessing=Preprocessing(image_size=10, resize=10))
    network.backbone = nn.Sequential(nn.Conv2d(3, 8, 7), nn.MaxPool2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pattern = expected.replace("[", r"\[").replace("]", r"\]")
    with (
        pytest.raises(ValueError, match=pattern) as caught,
        explained_input_errors(
            stage,
            network,
            NINE,
            trainer(),
        ),
    ):
        network.backbone(torch.zeros(2, 3, 8, 8))
    assert "14" in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), ValueError("a mistake"), AssertionError("a mistake")])
def test_explained_input_errors_leaves_other_errors(network: Network, error: Exception):
    with (
        pytest.raises(type(error), match=r"^a mistake$"),
        explained_input_errors(
            FinetuneStage(),
            network,
            NINE,
            trainer(),
        ),
    ):
        raise error


def test_a_run_with_a_last_batch_of_one_image_ends_before_it_begins(painted: Path, tmp_path: Path):
    size = images(painted, 1).batch_size
    given = [*TINY, f"data.root={painted}", f"run_dir={tmp_path}", f"data.batch_size={size}"]
    with pytest.raises(ValueError, match=rf"use data\.batch_size={size - 1}$"):
        run_training(configuration(*given))
    assert not (tmp_path / SPLIT_FILE).exists()


def test_a_run_on_images_that_are_too_small_names_the_size(painted: Path, tmp_path: Path):
    given = [*TINY, "model.architecture=vit_b_16", "head.cached_views=0", "finetune.epochs=0"]
    with pytest.raises(ValueError, match=r"data\.image_size=32: vit_b_16 .* use data\.image_size=224$"):
        run_training(configuration(*given, f"data.root={painted}", f"run_dir={tmp_path}"))
