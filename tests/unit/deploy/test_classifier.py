from pathlib import Path

import pytest
import torch
from PIL import Image

from flowers.deploy.classifier import Classifier
from flowers.evaluation.predictions import load_predictions
from flowers.runtime.files import read_json
from flowers.runtime.run_folder import BEST_CHECKPOINT


def test_a_classifier_says_what_the_run_said_of_its_validation_photos(trained: Path, painted: Path):
    classifier = Classifier.load(trained, accelerator="cpu", precision="32-true")
    said = load_predictions(trained / "predictions" / "val.csv")
    temperature = read_json(trained / "result.json")["temperature"]
    photos = torch.stack([classifier.pixels(painted / path) for path in said.paths])
    torch.testing.assert_close(classifier.probabilities(photos), said.probabilities(temperature), atol=1e-6, rtol=0)
    first = classifier(painted / said.paths[0])
    assert first.label == said.classes[int(said.predicted[0])]
    assert first.probability == max(first.probabilities.values())
    assert sum(first.probabilities.values()) == pytest.approx(1)


def test_a_photo_may_be_a_file_or_an_image_of_any_mode(trained: Path, tmp_path: Path):
    classifier = Classifier.load(trained / BEST_CHECKPOINT, accelerator="cpu")
    image = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 30)
    image.save(tmp_path / "grey.png")
    assert classifier(tmp_path / "grey.png") == classifier(image) == classifier(image.convert("RGB"))


def test_a_checkpoint_alone_is_not_calibrated(trained: Path, tmp_path: Path):
    alone = tmp_path / "a" / "b" / "alone.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((trained / BEST_CHECKPOINT).read_bytes())
    assert Classifier.load(alone).temperature == 1


def test_what_is_no_run_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no run there"):
        Classifier.load(tmp_path)
    (tmp_path / "x.ckpt").write_text("no")
    with pytest.raises(ValueError, match="not a checkpoint of flowers"):
        Classifier.load(tmp_path / "x.ckpt")
