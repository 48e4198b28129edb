import pytest
import torch

from flowers.features.strangeness import fit_strangeness


def make_features(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of features around their means, as a backbone with ReLU gives them: not negative."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.rand(3, 12, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % 3
    return (means[labels] + 0.2 * torch.randn(count, 12, generator=generator)).abs(), labels


def test_strangeness_is_the_relative_mahalanobis_distance_of_compressed_features():
    features, labels = make_features(90)
    points = torch.log1p(features / features.mean()).double()
    points /= points.norm(dim=1, keepdim=True)
    means = torch.stack([points[labels == number].mean(0) for number in range(3)])

    def inverse(deviations: torch.Tensor) -> torch.Tensor:
        covariance = torch.cov(deviations.T, correction=0)
        return torch.as_tensor(torch.linalg.inv(0.7 * covariance + 0.3 * covariance.trace() / 12 * torch.eye(12)))

    def distance(deviations: torch.Tensor, form: torch.Tensor) -> torch.Tensor:
        return torch.stack([row @ form @ row for row in deviations])

    form = inverse(points - means[labels])
    nearest = torch.stack([distance(points - mean, form) for mean in means]).amin(0)
    center = points.mean(0)
    expected = nearest - distance(points - center, inverse(points - center))
    torch.testing.assert_close(fit_strangeness(features, labels)(features).double(), expected, atol=1e-3, rtol=1e-4)


def test_strangeness_is_higher_for_images_of_no_class_and_does_not_depend_on_the_size_of_features():
    features, labels = make_features(90)
    strangers = 2 * torch.rand(50, 12, generator=torch.Generator().manual_seed(5))
    strangeness = fit_strangeness(features, labels)
    assert strangeness(make_features(60, seed=1)[0]).median() < strangeness(strangers).quantile(0.1)
    scaled = fit_strangeness(1000 * features, labels)
    torch.testing.assert_close(scaled(1000 * strangers), strangeness(strangers), atol=1e-3, rtol=1e-3)


def test_strangeness_keeps_the_directions_that_matter(monkeypatch: pytest.MonkeyPatch):
    features, labels = make_features(90)
    exact = fit_strangeness(features, labels)(features)
    monkeypatch.setattr("flowers.features.strangeness.MAX_DIRECTIONS", 6)
    fitted = fit_strangeness(features, labels)
    assert (len(fitted.gains), fitted.weight.shape) == (6, (9, 12))
    assert torch.corrcoef(torch.stack([exact, fitted(features)]))[0, 1] > 0.9


def test_strangeness_passes_over_classes_without_images():
    features, labels = make_features(90)
    strangeness = fit_strangeness(features, 2 * labels)  # classes 0, 2 and 4 of five
    torch.testing.assert_close(strangeness(features), fit_strangeness(features, labels)(features))
