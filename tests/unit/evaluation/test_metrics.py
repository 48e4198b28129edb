import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from flowers.evaluation.metrics import compute_metrics
from flowers.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def said() -> Predictions:
    """300 photos of four classes, most of them told right; the last class is never answered."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    logits = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    logits[torch.arange(300), labels] += 1.5
    logits[:, 3] -= 20
    return Predictions([f"{number}.png" for number in range(300)], labels, logits, ["a", "b", "c", "d"])


@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
def test_the_numbers_are_those_of_scikit_learn(said: Predictions):
    found = compute_metrics(said)
    true, answer = said.labels.numpy(), said.predicted.numpy()
    precision, recall, f1, support = precision_recall_fscore_support(true, answer, zero_division=0)
    for place, name in enumerate(said.classes):
        row = found["classes"][name]
        assert row["precision"]["value"] == (None if name == "d" else pytest.approx(precision[place]))
        assert row["recall"]["value"] == pytest.approx(recall[place])
        assert row["f1"]["value"] == pytest.approx(f1[place])
        assert row["n"] == support[place]
    for place, name in enumerate(("precision", "recall", "f1")):
        macro = precision_recall_fscore_support(true, answer, average="macro", zero_division=0)[place]
        assert found["macro"][name]["value"] == pytest.approx(macro)
    assert found["confusion"] == confusion_matrix(true, answer).tolist()
    assert found["top2"]["value"] == pytest.approx(top_k_accuracy_score(true, said.logits.numpy(), k=2))


def test_each_interval_holds_its_value(said: Predictions):
    found = compute_metrics(said)
    measured = [found["top2"], *found["macro"].values()]
    measured += [row[name] for row in found["classes"].values() for name in ("precision", "recall", "f1")]
    for number in measured:
        if number["value"] is not None:
            assert number["interval"][0] <= number["value"] <= number["interval"][1]


def test_answering_every_photo_is_the_plain_accuracy_and_the_bins_hold_all_photos(said: Predictions):
    found = compute_metrics(said)
    assert found["coverage"][-1]["coverage"] == 1
    assert found["coverage"][-1]["accuracy"] == found["accuracy"]
    for bins in found["calibration"]["bins"].values():
        assert sum(row["n"] for row in bins) == 300
        assert sum(row["n"] * row["accuracy"] for row in bins) / 300 == pytest.approx(found["accuracy"])
