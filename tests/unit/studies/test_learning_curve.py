from itertools import pairwise

import numpy as np
import pytest
import torch

from flowers.features.pretrained import LabeledFeatures
from flowers.studies.learning_curve import distinct_fractions, probed_curve, subset_positions

LABELS = ["rose"] * 100 + ["tulip"] * 20 + ["lily"] * 5


def test_subsets_are_nested_and_hold_their_share_of_each_class():
    positions = subset_positions(LABELS, [str(index) for index in range(125)], seed=1)
    subsets = [{*np.flatnonzero(positions < fraction)} for fraction in (0.1, 0.2, 0.5, 1.0)]
    assert all(small < large for small, large in pairwise(subsets))
    counts = [
        [sum(LABELS[index] == name for index in subset) for name in ("rose", "tulip", "lily")] for subset in subsets
    ]
    assert counts == [[10, 2, 1], [20, 4, 1], [50, 10, 3], [100, 20, 5]]
    assert not np.array_equal(positions, subset_positions(LABELS, [str(index) for index in range(125)], seed=2))


def test_a_group_of_near_duplicates_is_in_a_subset_whole_or_not_at_all():
    groups = [str(index // 5) for index in range(125)]
    positions = subset_positions(LABELS, groups, seed=0)
    assert all(len({*positions[start : start + 5]}) == 1 for start in range(0, 125, 5))


def test_fractions_with_as_many_images_count_once():
    positions = np.arange(10) / 10
    assert distinct_fractions(positions, [0.11, 0.2, 0.5, 0.91, 1.0]) == [0.2, 0.5, 1.0]
    with pytest.raises(ValueError, match=r"10 training photos, of which .* give 2 subset"):
        distinct_fractions(positions, [0.11, 0.2, 1.0])


def test_probed_curve_scores_each_subset_and_all_images_once():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = torch.nn.functional.one_hot(labels, 3) * 2 + torch.randn(120, 3, generator=generator)
    groups = [str(index) for index in range(120)]
    train = LabeledFeatures(features[:80], labels[:80], groups[:80])
    val = LabeledFeatures(features[80:], labels[80:], groups[80:])
    photos, correct = probed_curve(train, val, 3, [0.1, 0.5, 1.0], [0, 1])
    assert photos == [9, 41, 80]
    assert correct.shape == (2, 3, 40)
    assert np.array_equal(correct[0, 2], correct[1, 2])
    assert not np.array_equal(correct[0, 0], correct[1, 0])
    assert correct[:, 2].mean() > 0.6
