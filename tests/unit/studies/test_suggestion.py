import numpy as np
import pytest

from flowers.settings.schema.programs import SuggestSettings
from flowers.studies.suggestion import METHODS, choose_badge, choose_margin, choose_margin_kmeans, uncertainty


@pytest.fixture(name="pool")
def make_pool() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((60, 8)), rng.dirichlet([0.4] * 3, 60)


def test_the_schema_knows_each_method():
    assert set(SuggestSettings.model_fields["method"].annotation.__args__) == set(METHODS)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 17, 60])
def test_each_method_chooses_as_many_as_asked_and_none_twice(method: str, count: int, pool):
    chosen = METHODS[method](pool[0], pool[1], count, 3)
    assert len(set(chosen)) == count
    assert set(chosen) <= set(range(60))
    assert list(chosen) == list(METHODS[method](pool[0], pool[1], count, 3))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_takes_images_that_are_all_the_same_and_certain(method: str):
    assert len(set(METHODS[method](np.zeros((20, 4)), np.eye(3)[[0] * 20], 7, 0))) == 7


def test_uncertainty_is_one_minus_the_margin():
    assert uncertainty(np.array([[0.5, 0.3, 0.2], [1, 0, 0]])) == pytest.approx([0.8, 0])


def test_margin_takes_the_most_uncertain_first(pool):
    doubts = uncertainty(pool[1])
    assert doubts[choose_margin(pool[0], pool[1], 5, 0)].tolist() == sorted(doubts, reverse=True)[:5]


def test_margin_kmeans_takes_one_of_each_cluster_of_uncertain_images():
    features = np.repeat(np.eye(4), 3, axis=0)
    probabilities = np.tile([0.5, 0.5], (12, 1))
    probabilities[-3:] = [1.0, 0.0]  # the last cluster is certain
    chosen = choose_margin_kmeans(features, probabilities, 3, 0)
    assert sorted(index // 3 for index in chosen) == [0, 1, 2]
    assert sorted(index // 3 for index in choose_margin(features, probabilities, 3, 0)) == [0, 0, 0]


def test_badge_does_not_choose_two_copies():
    features = np.repeat(np.eye(3), 5, axis=0)
    probabilities = np.tile([0.4, 0.3, 0.3], (15, 1))
    assert sorted(index // 5 for index in choose_badge(features, probabilities, 3, 0)) == [0, 1, 2]
