"""What holds for every interval, whatever the data."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.evaluation.class_curves import auroc_interval, average_precision_interval
from flowers.evaluation.metrics import compute_metrics
from flowers.evaluation.rejection_scores import auroc
from flowers.evaluation.statistics import (
    difference_interval,
    mean_interval,
    paired_interval,
    paired_p,
    unpaired_test,
    wilson_interval,
)
from flowers.runs.predictions import Predictions

repeatable = settings(max_examples=60, deadline=None, derandomize=True)

SIZES = st.integers(1, 2000)
IMAGES = st.none() | SIZES


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(SIZES)
    return draw(st.integers(0, n) | st.sampled_from([0, n])), n


@st.composite
def accuracies(draw: st.DrawFn, least: int = 2) -> tuple[list[float], int]:
    """Accuracies of runs on n images, often equal ones."""
    n = draw(SIZES)
    hits = st.integers(0, n)
    some = draw(st.lists(hits, min_size=least, max_size=6) | hits.map(lambda hit: [hit] * least))
    return [hit / n for hit in some], n


def check(interval: list[float], value: float, lowest: float = 0.0) -> None:
    low, high = interval
    assert lowest <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    assert high - low > 1e-5  # an interval of Wilson for 2,000 images has a width of 0.002


@repeatable
@given(counts())
def test_wilson_interval(case: tuple[int, int]):
    hits, n = case
    low, high = wilson_interval(hits, n)
    check([low, high], hits / n)
    assert wilson_interval(n - hits, n) == pytest.approx([1 - high, 1 - low], abs=1e-9)
    wide, narrow = (np.ptp(wilson_interval(hits * times, n * times)) for times in (1, 2))
    assert narrow < wide


@repeatable
@given(st.integers(0, 50), st.integers(0, 50), SIZES)
def test_paired_interval(gained: int, lost: int, rest: int):
    n = gained + lost + rest
    low, high = paired_interval(gained, lost, n)
    check([low, high], (gained - lost) / n, -1)
    assert paired_interval(lost, gained, n) == pytest.approx([-high, -low], abs=1e-9)
    assert np.ptp(paired_interval(2 * gained, 2 * lost, 2 * n)) < high - low


@repeatable
@given(accuracies(), st.sampled_from([0.0, 0.25, 1.0]), st.booleans())
def test_mean_interval(case: tuple[list[float], int], overlap: float, is_known: bool):
    values, n = case
    mean, images = float(np.mean(values)), n if is_known else None
    low, high = mean_interval(values, overlap, images)
    check([low, high], mean)
    mirrored = mean_interval([1 - value for value in values], overlap, images)
    assert mirrored == pytest.approx([1 - high, 1 - low], abs=1e-9)
    if is_known:
        assert np.ptp(mean_interval(values, overlap, 2 * n)) <= high - low


@repeatable
@given(accuracies(), accuracies(), st.sampled_from([0.0, 0.25]), IMAGES)
def test_difference_interval_and_tests(
    first: tuple[list[float], int], second: tuple[list[float], int], overlap: float, images: int | None
):
    differences = [a - b for a, b in zip(first[0], second[0], strict=False)]
    low, high = difference_interval(differences, overlap, images)
    check([low, high], float(np.mean(differences)), -1)
    swapped = [-each for each in differences]
    assert difference_interval(swapped, overlap, images) == pytest.approx([-high, -low], abs=1e-9)
    p = paired_p(differences, overlap, images)
    assert 0 <= p <= 1
    assert paired_p(swapped, overlap, images) == pytest.approx(p)
    if images is not None:
        assert p > 0
    unpaired = unpaired_test(first[0], second[0], images=images)
    assert 0 <= unpaired.p <= 1
    assert unpaired_test(second[0], first[0], images=images).p == pytest.approx(unpaired.p)


@repeatable
@given(st.floats(0, 1), SIZES, SIZES)
def test_auroc_interval(value: float, positives: int, negatives: int):
    low, high = auroc_interval(value, positives, negatives)
    check([low, high], value)
    assert auroc_interval(1 - value, positives, negatives) == pytest.approx([1 - high, 1 - low], abs=1e-7)
    assert auroc_interval(value, negatives, positives) == pytest.approx([low, high])
    assert np.ptp(auroc_interval(value, 4 * positives, 4 * negatives)) < high - low


@repeatable
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_auroc_of_swapped_groups_is_mirrored(known: list[int], strangers: list[int]):
    groups = torch.tensor(known).double(), torch.tensor(strangers).double()
    area, swapped = auroc(*groups), auroc(*groups[::-1])
    check(area["interval"], area["value"])
    low, high = area["interval"]
    assert swapped["interval"] == pytest.approx([1 - high, 1 - low], abs=1e-7)


@repeatable
@given(st.floats(0, 1), SIZES)
def test_average_precision_interval(value: float, positives: int):
    interval = average_precision_interval(value, positives)
    check(interval, value)
    assert np.ptp(average_precision_interval(value, 2 * positives)) < np.ptp(interval)


@st.composite
def answers(draw: st.DrawFn) -> Predictions:
    """Answers for images of some of four classes, most of them right."""
    labels = draw(st.lists(st.integers(0, 3), min_size=1, max_size=30))
    predicted = [draw(st.sampled_from([label, label, label, 0, 3])) for label in labels]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 4).double()
    return Predictions([f"{number}.png" for number in range(len(labels))], torch.tensor(labels), logits, [*"abcd"])


@repeatable
@given(answers())
def test_intervals_of_all_metrics(predictions: Predictions):
    scores = compute_metrics(predictions)
    rows = list(scores["classes"].values())
    measured = [*scores["metrics"].values(), *(row[key] for row in rows for key in ("precision", "recall", "f1"))]
    measured += [row[key] for row in rows for key in ("auroc", "average_precision")]
    for each in measured:
        if each["interval"] is not None:
            check(each["interval"], each["value"] if abs(each["value"]) > 1e-7 else 0.0)
    for row in rows:
        assert (row["f1"]["value"] is None) == (row["recall"]["value"] is None) == (row["n"] == 0)
    recalls = [row["recall"]["value"] for row in rows if row["n"]]
    assert scores["metrics"]["macro_recall"]["value"] == pytest.approx(np.mean(recalls), abs=1e-6)


@repeatable
@given(answers())
def test_averages_do_not_depend_on_the_order_of_the_classes(predictions: Predictions):
    turned = Predictions(predictions.paths, 3 - predictions.labels, predictions.logits.flip(1), [*"dcba"])
    for name in ("macro_precision", "macro_recall", "macro_f1"):
        (first, second) = (compute_metrics(each)["metrics"][name] for each in (predictions, turned))
        assert first["value"] == pytest.approx(second["value"])
        assert first["interval"] == pytest.approx(second["interval"])


def test_intervals_shrink_with_the_images():
    for shrinking in (
        [np.ptp(wilson_interval(n, n)) for n in (1, 10, 100, 1000)],
        [np.ptp(paired_interval(0, 0, n)) for n in (1, 10, 100, 1000)],
        [np.ptp(mean_interval([1.0, 1.0], images=n)) for n in (1, 10, 100, 1000)],
        [np.ptp(difference_interval([0.0, 0.0], images=n)) for n in (1, 10, 100, 1000)],
        [np.ptp(auroc_interval(1.0, n, n)) for n in (1, 10, 100, 1000)],
    ):
        assert all(wide > narrow > 0 for wide, narrow in pairwise(shrinking))
