"""The linear probe is the optimum of its objective."""

import pytest
import torch
from torch.nn import functional

from flowers.features.linear_probe import (
    L2_GRID,
    choose_l2,
    cross_validated_logits,
    fit_linear_probe,
    out_of_fold_logits,
    principal_components,
    stratified_folds,
)


@pytest.fixture(name="problem")
def make_problem():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    return torch.randn(90, 8, generator=generator) + 2 * functional.one_hot(labels, 8), labels


def test_fit_linear_probe_has_no_gradient_at_its_optimum(problem):
    features, labels = problem
    probe = fit_linear_probe(features, labels, 3, l2=0.1)
    scale = features.square().mean().sqrt()
    weight = (probe.weight * scale).requires_grad_()
    loss = functional.cross_entropy(features / scale @ weight.T + probe.bias, labels) + 0.05 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-4


def test_fit_linear_probe_does_not_depend_on_the_scale_of_the_features(problem):
    features, labels = problem
    first, second = (fit_linear_probe(inputs, labels, 3, l2=0.1) for inputs in (features, 1000 * features))
    torch.testing.assert_close(second.logits(1000 * features), first.logits(features), rtol=1e-3, atol=1e-3)


def test_fit_linear_probe_finds_the_same_from_another_start(problem):
    features, labels = problem
    optimum = fit_linear_probe(features, labels, 3, l2=0.1)
    start = fit_linear_probe(features, labels, 3, l2=1e-3)
    again = fit_linear_probe(features, labels, 3, l2=0.1, start=start)
    torch.testing.assert_close(again.weight, optimum.weight, rtol=1e-2, atol=1e-3)


def test_fit_linear_probe_starts_at_the_given_probe(problem):
    features, labels = problem
    features = features + 5  # off center
    optimum = fit_linear_probe(features, labels, 3, l2=0.1)
    again = fit_linear_probe(features, labels, 3, l2=0.1, start=optimum)
    torch.testing.assert_close(again.logits(features), optimum.logits(features), rtol=1e-3, atol=1e-3)


def test_choose_l2_penalizes_noise_more_than_a_clear_signal(problem):
    _, labels = problem
    noise = torch.randn(90, 200, generator=torch.Generator().manual_seed(1))
    clear = functional.one_hot(labels, 8).float()
    assert choose_l2(noise, labels, 3) == max(L2_GRID)
    assert choose_l2(clear, labels, 3) == min(L2_GRID)
    assert choose_l2(noise[:2], labels[:2], 3) in L2_GRID  # fewer images than folds


def test_out_of_fold_logits_are_those_of_probes_that_never_saw_the_image(problem):
    features, labels = problem
    fold_of = stratified_folds(labels, 3, seed=0)
    logits = out_of_fold_logits(features, labels, 3, fold_of)
    others = fold_of != 1
    probe = fit_linear_probe(features[others], labels[others], 3, L2_GRID[-1])
    torch.testing.assert_close(logits[L2_GRID[-1]][~others], probe.logits(features[~others]), rtol=1e-3, atol=1e-3)


def test_out_of_fold_logits_stop_where_weaker_penalties_overfit(problem):
    _, labels = problem
    noise = torch.randn(90, 200, generator=torch.Generator().manual_seed(1))
    assert [*out_of_fold_logits(noise, labels, 3, stratified_folds(labels, 3, seed=0))] == [*L2_GRID[-1:-3:-1]]


def test_cross_validated_logits_classify_each_image_by_the_other_folds():
    labels = torch.arange(60) % 3
    fold_of = torch.arange(60) // 20
    logits, penalties = cross_validated_logits(functional.one_hot(labels, 3).float(), labels, 3, fold_of)
    assert logits.argmax(1).equal(labels)
    assert len(penalties) == 3
    assert {*penalties} <= {*L2_GRID}
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert (cross_validated_logits(noise, labels, 3, fold_of)[0].argmax(1) == labels).float().mean() < 0.6


def test_stratified_folds_spread_each_class_evenly(problem):
    _, labels = problem
    fold_of = stratified_folds(labels, 5, seed=0)
    counts = torch.stack([functional.one_hot(fold_of[labels == label], 5).sum(0) for label in range(3)])
    assert (counts == 6).all()
    assert not torch.equal(fold_of, stratified_folds(labels, 5, seed=1))


def test_class_weights_fit_and_choose_as_copies_of_the_images_would(problem):
    features, labels = problem
    features = features / features.square().mean(1, keepdim=True).sqrt()  # copies do not change the scale
    copied = torch.cat([torch.arange(len(labels)), torch.arange(len(labels))[labels == 0]])
    weights = torch.tensor([2.0, 1.0, 1.0])
    weighted = fit_linear_probe(features, labels, 3, 0.1, class_weights=weights)
    expected = fit_linear_probe(features[copied], labels[copied], 3, 0.1)
    torch.testing.assert_close(weighted.weight, expected.weight, rtol=1e-3, atol=1e-4)
    assert choose_l2(features, labels, 3, class_weights=weights) in L2_GRID


@pytest.mark.parametrize("count", [20, 60])
def test_principal_components_keep_distances(count):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 5, generator=generator) @ torch.randn(5, 30, generator=generator) + 7  # 5 directions
    components = principal_components(features, 8)
    assert components.shape == (count, 8)
    distances = torch.nn.functional.pdist
    torch.testing.assert_close(distances(components), distances(features), atol=1e-3, rtol=1e-3)
    assert components.square().mean(0).argsort(descending=True)[:5].tolist() == [*range(5)]
