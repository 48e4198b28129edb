from pathlib import Path

import numpy as np
import pytest

from flowers.evaluation.figures import figure_to_svg, plot_learning_curve
from flowers.evaluation.power_law import (
    PowerLaw,
    accuracy_band,
    describe_learning_curve,
    fit_learning_curve,
    interval,
    predict_accuracies,
    read_learning_curve,
)
from flowers.runtime.files import write_json
from flowers.studies.learning_curve import summarize_curve

LAW = PowerLaw(floor=0.04, scale=1.2, exponent=0.5)
PHOTOS = [50, 100, 200, 400, 800, 1600]


def drawn(rng: np.random.Generator, photos: list[int], draws: int = 5, count: int = 300) -> np.ndarray:
    """Photos that differ in difficulty, the same for all draws."""
    difficulty = rng.random(count)
    noise = rng.normal(0, 0.05, (draws, len(photos), count))
    return difficulty + noise < LAW.accuracy(photos)[None, :, None]


def test_fit_finds_the_law_of_exact_errors():
    found = PowerLaw.fit(PHOTOS, 1 - LAW.accuracy(PHOTOS), np.ones(len(PHOTOS)))
    assert found == pytest.approx(LAW, rel=1e-3)


def test_the_samples_are_fitted_as_the_law_is():
    correct = drawn(np.random.default_rng(1), PHOTOS)
    samples = predict_accuracies(PHOTOS, correct, [400, 3200])
    assert np.median(samples, axis=0) == pytest.approx(
        fit_learning_curve(PHOTOS, correct).accuracy([400, 3200]), abs=0.004
    )


def test_fit_has_no_floor_below_zero():
    falling = [0.3, 0.2, 0.1, 0.01]  # a law with a negative floor would fit better
    found = PowerLaw.fit([10, 20, 40, 80], falling, np.ones(4))
    assert found.floor >= 0
    assert found.accuracy(10**9) <= 1


def test_the_band_holds_later_measurements_as_often_as_it_says():
    held = 0
    for seed in range(10):
        correct = drawn(np.random.default_rng(seed), PHOTOS)
        low, high = interval(predict_accuracies(PHOTOS[:4], correct[:, :4], PHOTOS[-1:]))
        held += bool(low[0] <= correct[0, -1].mean() <= high[0])
    assert held >= 8


def test_the_band_is_wider_with_fewer_validation_photos():
    widths = []
    for count in (100, 1000):
        low, high = interval(predict_accuracies(PHOTOS, drawn(np.random.default_rng(0), PHOTOS, count=count), [3200]))
        widths.append(high[0] - low[0])
    assert widths[0] > 1.5 * widths[1]


def test_a_curve_of_one_accuracy_is_flat():
    correct = np.zeros((2, 4, 40), dtype=bool)
    correct[:, :, :30] = True
    assert fit_learning_curve(PHOTOS[:4], correct).accuracy(10_000) == pytest.approx(0.75, abs=0.01)
    assert fit_learning_curve(PHOTOS[:4], correct | True).accuracy(10_000) == pytest.approx(1, abs=0.01)


def test_the_band_has_a_width_where_no_photo_is_wrong():
    """By hand: Wilson's interval of 40 of 40 begins at 40 / (40 + 1.96²)."""
    low, high = accuracy_band(PHOTOS[:4], np.ones((2, 4, 40), dtype=bool), [3200])
    assert (low[0], high[0]) == pytest.approx((40 / (40 + 1.959964**2), 1), abs=1e-3)


def test_the_check_predicts_all_photos_from_half_of_them(tmp_path: Path):
    content = summarize_curve(PHOTOS, drawn(np.random.default_rng(3), PHOTOS))
    assert content["twice"]["photos"] == 3200
    assert content["check"]["photos"] == 800
    low, high = content["check"]["interval"]
    assert low < content["check"]["accuracy"] < high
    text = " ".join(describe_learning_curve(content))
    assert "twice the photos (3,200) would give 0." in text
    assert "check: from up to 800 photos" in text
    assert "1,600" in figure_to_svg(plot_learning_curve(content, is_page=True))
    assert read_learning_curve(tmp_path) is None
    write_json(content, tmp_path / "learning_curve.json")
    assert read_learning_curve(tmp_path) == content
    content["points"][0]["accuracies"][1] = []
    write_json(content, tmp_path / "learning_curve.json")
    with pytest.raises(ValueError, match=r"is damaged: points.0.accuracies=.*: expected a list"):
        read_learning_curve(tmp_path)
    write_json({"law": {}}, tmp_path / "learning_curve.json")
    with pytest.raises(ValueError, match=r"is damaged: .*: delete it"):
        read_learning_curve(tmp_path)
