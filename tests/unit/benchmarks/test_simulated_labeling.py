from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.label_simulation import main
from benchmarks.simulated_labeling import labels_needed, simulate_labeling
from flowers.features.pretrained import LabeledFeatures
from flowers.studies.suggestion import METHODS
from tests.helpers import configuration


def test_labels_needed_lies_between_two_sizes():
    accuracies = np.array([0.5, 0.7, 0.6, 0.9])
    assert labels_needed([50, 100, 150, 200], accuracies, 0.6) == pytest.approx(75)
    assert labels_needed([50, 100, 150, 200], accuracies, 0.4) == 50
    assert labels_needed([50, 100, 150, 200], accuracies, 0.95) is None


def test_simulation_is_repeatable_and_starts_with_the_same_labels_for_all_methods():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    features = torch.nn.functional.one_hot(labels, 3) + torch.randn(150, 3, generator=generator)
    images = LabeledFeatures(features, labels, [str(index) for index in range(150)])
    curves = {method: simulate_labeling(images, 3, method, [20, 40, 60], 0) for method in METHODS}
    assert len({curve[0] for curve in curves.values()}) == 1
    assert np.array_equal(curves["badge"], simulate_labeling(images, 3, "badge", [20, 40, 60], 0))


def test_label_simulation_needs_enough_photos(trained: Path):
    with pytest.raises(ValueError, match="photos are too few for count=50"):
        main(configuration(f"run={trained}", "seeds=2", name="label_simulation"))
