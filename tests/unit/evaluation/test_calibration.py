import torch

from flowers.evaluation.calibration import cross_fitted_probabilities, fit_temperature
from flowers.evaluation.predictions import Predictions


def overconfident(n: int = 400, factor: float = 3.0) -> Predictions:
    """Photos whose classes are drawn by the logits' own probabilities; then the logits are made greater."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, 4, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return Predictions([f"{number:04}.png" for number in range(n)], labels, logits * factor, list("abcd"))


def test_the_temperature_undoes_an_overconfidence():
    said = overconfident(4000)
    assert abs(fit_temperature(said.logits, said.labels) - 3) < 0.2


def test_no_photo_is_scored_by_a_temperature_that_it_helped_to_fit():
    said = overconfident()
    before = cross_fitted_probabilities(said)
    labels = said.labels.clone()
    labels[7] = (labels[7] + 1) % 4  # another truth of one photo changes what others get, never its own probabilities
    after = cross_fitted_probabilities(Predictions(said.paths, labels, said.logits, said.classes))
    changed = (before != after).any(1)
    assert changed.any()
    assert not changed[7]


def test_two_photos_are_enough_to_go_on_with():
    said = overconfident(2)
    assert torch.allclose(cross_fitted_probabilities(said).sum(1), torch.ones(2, dtype=torch.float64))
