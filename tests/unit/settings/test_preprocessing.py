from pathlib import Path

import pytest

from flowers.models.network import Network
from flowers.settings.preprocessing import IMAGENET_MEAN, Preprocessing
from tests.helpers import configuration


def test_preprocessing_is_equal_by_value_and_restored_from_its_dictionary():
    bicubic = Preprocessing(32, 40, "bicubic", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert Preprocessing.from_dict(bicubic.to_dict()) == bicubic != Preprocessing(32, 40)
    as_tuples = Preprocessing(32, 40, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert bicubic == as_tuples
    assert len({bicubic, as_tuples}) == 1


def test_preprocessing_of_a_checkpoint_without_interpolation_is_bilinear():
    hparams = {"architecture": "resnet18", "image_size": 32, "resize": 40, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert Preprocessing.from_dict(hparams) == Preprocessing(32, 40, "bilinear", (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("mean", [[0.4, 0.5, 0.6], None])
def test_preprocessing_from_settings_is_that_of_the_classifier(mean: list[float] | None, folder: Path):
    given = [] if mean is None else [f"+model.mean={mean}"]
    settings = configuration(f"data.root={folder}", "data.image_size=32", "data.resize=40", *given)
    found = Preprocessing.from_settings(settings.data, settings.model)
    assert found == Preprocessing(32, 40, mean=IMAGENET_MEAN if mean is None else mean, bit_depth="auto")
    network = Network("resnet18", ["lily", "orchid"], preprocessing=found)
    assert network.preprocessing == found
    assert network.hparams["mean"] == (IMAGENET_MEAN if mean is None else mean)
