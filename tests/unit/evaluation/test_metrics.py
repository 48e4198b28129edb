from typing import Any

import pytest
import torch
from rich.console import Console
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from flowers.evaluation.metrics import METRICS, Metric, MetricInputs, compute_metrics, metric_values, score
from flowers.evaluation.statistics import wilson_interval
from flowers.evaluation.tables import score_tables, sort_by_f1
from flowers.runs.predictions import Predictions


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """300 images of four classes, most of them predicted right; the last class is never predicted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    logits = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    logits[torch.arange(300), labels] += 1.5
    logits[:, 3] -= 20
    return Predictions([f"{number}.png" for number in range(300)], labels, logits, ["a", "b", "c", "d"])


@pytest.fixture(scope="module")
def scores(predictions: Predictions) -> dict[str, Any]:
    return compute_metrics(predictions)


@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
def test_compute_metrics_agrees_with_scikit_learn(predictions: Predictions, scores: dict[str, Any]):
    true, predicted = predictions.labels.numpy(), predictions.predicted.numpy()
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, zero_division=0)
    for index, label in enumerate(predictions.classes):
        row = scores["classes"][label]
        assert row["precision"]["value"] == (None if label == "d" else pytest.approx(precision[index]))
        assert row["recall"]["value"] == pytest.approx(recall[index])
        assert row["f1"]["value"] == pytest.approx(f1[index])
        assert row["n"] == support[index]
    for index, name in enumerate(("precision", "recall", "f1")):
        macro = precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)[index]
        assert scores["metrics"][f"macro_{name}"]["value"] == pytest.approx(macro)
    assert scores["confusion"] == confusion_matrix(true, predicted).tolist()
    top2 = top_k_accuracy_score(true, predictions.logits.numpy(), k=2)
    assert scores["metrics"]["top2"]["value"] == pytest.approx(top2)


def test_each_interval_contains_its_value(scores: dict[str, Any]):
    measured = list(scores["metrics"].values())
    measured += [row[key] for row in scores["classes"].values() for key in ("precision", "recall", "f1")]
    for number in measured:
        if number["interval"] is not None:
            assert number["interval"][0] <= number["value"] <= number["interval"][1]


def test_coverage_of_1_has_the_plain_accuracy_and_the_bins_contain_every_image(scores: dict[str, Any]):
    assert scores["coverage"][-1]["coverage"] == 1
    assert scores["coverage"][-1]["accuracy"] == scores["accuracy"]
    for bins in scores["calibration"]["bins"].values():
        assert sum(row["n"] for row in bins) == 300
        assert sum(row["n"] * row["accuracy"] for row in bins) / 300 == pytest.approx(scores["accuracy"])


def test_score_and_metric_values_are_those_of_compute_metrics(predictions: Predictions, scores: dict[str, Any]):
    assert {key: scores[key] for key in ("accuracy", "loss", "n", "interval")} == score(predictions)
    assert {name: row["value"] for name, row in scores["metrics"].items()} == metric_values(predictions)
    assert scores["metrics"]["accuracy"] == {"value": scores["accuracy"], "interval": scores["interval"]}


def test_class_metrics_are_those_of_torchmetrics_to_the_bit(predictions: Predictions, scores: dict[str, Any]):
    arguments = (predictions.predicted, predictions.labels, 4)
    assert scores["metrics"]["macro_precision"]["value"] == multiclass_precision(*arguments).item()
    assert scores["metrics"]["macro_recall"]["value"] == multiclass_recall(*arguments).item()
    assert scores["metrics"]["macro_f1"]["value"] == multiclass_f1_score(*arguments).item()
    f1 = multiclass_f1_score(*arguments, average="none").tolist()
    assert [row["f1"]["value"] for row in scores["classes"].values()] == f1


def test_intervals_of_averages_are_nearly_those_of_drawing_images(predictions: Predictions, scores: dict[str, Any]):
    generator = torch.Generator().manual_seed(1)
    draws = torch.randint(300, (1000, 300), generator=generator)
    recalls = torch.stack([multiclass_recall(predictions.predicted[i], predictions.labels[i], 4) for i in draws])
    expected = recalls.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert scores["metrics"]["macro_recall"]["interval"] == pytest.approx(expected, abs=0.006)


def test_a_class_without_images_has_no_recall_and_no_f1_and_is_in_no_average(capsys: pytest.CaptureFixture[str]):
    """One of 50 images of a is taken for c, all 50 of b are right: the recalls are 0.98 and 1."""
    labels = torch.arange(100) // 50
    predicted = labels.index_fill(0, torch.tensor([0]), 2)
    logits = torch.zeros(100, 3, dtype=torch.float64).scatter(1, predicted[:, None], 3.0)
    scores = compute_metrics(Predictions([str(number) for number in range(100)], labels, logits, ["a", "b", "c"]))
    values = {name: measured["value"] for name, measured in scores["metrics"].items()}
    assert values["macro_recall"] == pytest.approx(0.99)
    assert values["macro_precision"] == 1.0
    assert values["macro_f1"] == pytest.approx((98 / 99 + 1) / 2)
    unknown = {"value": None, "interval": None}
    assert (scores["classes"]["c"]["recall"], scores["classes"]["c"]["f1"]) == (unknown, unknown)
    assert scores["classes"]["c"]["precision"]["value"] == 0
    assert list(dict(sort_by_f1(scores))) == ["a", "b", "c"]
    for table in score_tables("val", scores):
        Console(width=120).print(table)
    out = capsys.readouterr().out
    assert "2 of 3" in out
    (row,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["c", "0"]][:1]
    assert (row[2], row[4:]) == ("0.000", ["none", "none"])


def test_intervals_have_a_width_without_a_mistake():
    """By hand: Wilson's interval of 5 of 5 begins at J = 5 / (5 + 1.96²) = 0.5655, the F1's at 2 J / (1 + J)."""
    labels = torch.arange(10) % 2
    logits = torch.nn.functional.one_hot(labels).double()
    scores = compute_metrics(Predictions([str(number) for number in range(10)], labels, logits, ["a", "b"]))
    assert scores["classes"]["a"]["f1"]["interval"] == pytest.approx([0.7225, 1], abs=1e-4)
    for name in ("macro_precision", "macro_recall", "macro_f1"):
        low, high = scores["metrics"][name]["interval"]
        assert 0.5 < low < 0.9
        assert high == 1


@pytest.fixture(scope="module")
def many_classes() -> Predictions:
    """Two images of each of 1,000 classes with awkward names, half of them predicted wrong."""
    labels = torch.arange(2000) % 1000
    predicted = torch.where(torch.arange(2000) < 1000, (labels + 1) % 1000, labels)
    logits = torch.zeros(2000, 1000, dtype=torch.float64).scatter(1, predicted[:, None], 3.0)
    names = ["[/b]", "$x", "esc\x1b[31m", "cr\r", "bad\udce9", "=1+1", *(f"class {index}" for index in range(6, 1000))]
    return Predictions([f"{number}.png" for number in range(2000)], labels, logits, names)


@pytest.fixture(scope="module")
def many_scores(many_classes: Predictions) -> dict[str, Any]:
    return compute_metrics(many_classes)


def test_scores_of_many_classes_hold_pairs_and_no_matrix(many_scores: dict[str, Any]):
    scores = many_scores
    assert scores["confusion"] is None
    assert scores["confused_pairs"][0] == {"true": "[/b]", "predicted": "$x", "n": 1}
    assert len(scores["confused_pairs"]) == 1000
    assert scores["classes"]["$x"]["recall"] == {"value": 1 / 2, "interval": wilson_interval(1, 2)}


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many elements the largest tensor has that an operation of torch returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_class_metrics_count_without_a_tensor_of_images_by_cells(many_classes: Predictions):
    """In deterministic mode, as on a CPU, `bincount` in torchmetrics makes a tensor (N, C²)."""
    few = Predictions(many_classes.paths[:30], many_classes.labels[:30], many_classes.logits[:30], many_classes.classes)
    torch.use_deterministic_algorithms(True)
    try:
        with LargestTensor() as largest:  # type: ignore[no-untyped-call]
            assert MetricInputs(few).averages.shape == (1003,)
            assert MetricInputs(few).average_intervals.shape == (2, 1003)
    finally:
        torch.use_deterministic_algorithms(False)
    assert largest.elements <= 1000 * 1003  # resamples by averages


def test_score_tables_stay_readable_with_many_classes_and_show_any_name(
    many_scores: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    for table in score_tables("[/b]\x1b", many_scores):
        Console(width=80).print(table)
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 120
    assert "40 of 1,000 classes, worst F1 first" in out
    assert "40 of 1,000 confused pairs" in out
    assert "esc\\x1b[31m" in out
    assert "[/b]" in out
    assert "\x1b" not in out


def test_score_tables_show_the_matrix_where_it_fits(scores: dict[str, Any]):
    matrix, pairs = (score_tables("val", scores, width)[2].columns for width in (80, 30))
    assert [str(column.header) for column in matrix] == ["true \\ predicted", "a", "b", "c", "d"]
    assert str(pairs[2].header) == "images"


@pytest.fixture
def error_count():
    metric = Metric("errors", "number of errors", lambda inputs: len(inputs.predictions) - inputs.correct)
    METRICS.append(metric)
    yield metric
    METRICS.remove(metric)


def test_a_metric_added_to_the_list_is_in_scores_and_tables(
    predictions: Predictions, error_count: Metric, capsys: pytest.CaptureFixture[str]
):
    scores = compute_metrics(predictions)
    for table in score_tables("val", scores):
        Console(width=120).print(table)
    assert scores["metrics"]["errors"]["value"] == 300 - round(300 * scores["accuracy"])
    assert error_count.label in capsys.readouterr().out
