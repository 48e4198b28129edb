"""The linear probe is the optimum of its objective."""

import pytest
import torch
from torch.nn import functional

from flowers.features.linear_probe import fit_linear_probe


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
