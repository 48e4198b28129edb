from typing import Any

import pytest
import torch
from rich.console import Console
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from flowers.evaluation.metrics import METRICS, Metric, compute_metrics, metric_values, score
from flowers.evaluation.predictions import Predictions
from flowers.evaluation.tables import score_tables


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
