import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from flowers.models.losses import class_weighted, cross_entropy, focal

LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2])


def test_cross_entropy_without_settings_is_that_of_torch():
    assert torch.equal(cross_entropy(LOGITS, LABELS), functional.cross_entropy(LOGITS, LABELS))


def test_cross_entropy_weights_the_images_of_a_class():
    plain = cross_entropy(LOGITS, LABELS, reduction="none")
    weighted = cross_entropy(LOGITS, LABELS, class_weights=[1, 2, 0], reduction="none")
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 2, 0, 1, 2, 0, 0]))
    assert cross_entropy(LOGITS, LABELS, class_weights=[1, 2, 0]) == weighted.mean()


def test_cross_entropy_needs_a_weight_for_each_class():
    with pytest.raises(ValueError, match=r"loss\.class_weights=\[1, 2\]: expected 3, one for each class"):
        cross_entropy(LOGITS, LABELS, class_weights=[1, 2])


def test_focal_with_gamma_0_is_the_cross_entropy_and_lowers_the_weight_of_easy_images():
    plain = cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(focal(LOGITS, LABELS, gamma=0.0, reduction="none"), plain)
    ratio = focal(LOGITS, LABELS, reduction="none") / plain
    torch.testing.assert_close(ratio, (1 - torch.exp(-plain)) ** 2)


@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_losses_of_probabilities_are_the_mean_over_the_labels(loss):
    other = LABELS.roll(1)
    mixture = 0.3 * functional.one_hot(LABELS, 3) + 0.7 * functional.one_hot(other, 3)
    expected = 0.3 * loss(LOGITS, LABELS, reduction="none") + 0.7 * loss(LOGITS, other, reduction="none")
    torch.testing.assert_close(loss(LOGITS, mixture, reduction="none"), expected)


def test_class_weighted_multiplies_the_loss_of_an_image_by_the_weight_of_its_class():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # probabilities 1/2 and 3/4, 1/4
    weights, mixed = torch.tensor([0.5, 2.0]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    losses = class_weighted(logits, torch.tensor([0, 1]), cross_entropy, weights, reduction="none")
    torch.testing.assert_close(losses, torch.tensor([0.5 * math.log(2), 2 * math.log(4)]))
    assert class_weighted(logits, torch.tensor([0, 1]), cross_entropy, weights) == losses.mean()
    of_mixtures = class_weighted(logits, mixed, cross_entropy, weights, reduction="none")
    torch.testing.assert_close(of_mixtures, torch.tensor([1.25 * math.log(2), 0.5 * math.log(4 / 3)]))


@pytest.mark.parametrize("loss", [partial(cross_entropy, label_smoothing=0.2), focal])
def test_class_weighted_over_an_epoch_is_the_loss_on_equally_many_images_of_each_class(loss):
    counts = LABELS.bincount()
    weights = len(LABELS) / (3 * counts)
    copies = torch.cat([torch.arange(7)[label == LABELS].repeat(6 // int(counts[label])) for label in range(3)])
    found = class_weighted(LOGITS, LABELS, loss, weights)
    torch.testing.assert_close(found, loss(LOGITS[copies], LABELS[copies]))
