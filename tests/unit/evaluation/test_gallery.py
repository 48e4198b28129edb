import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from flowers.evaluation.gallery import (
    ScoredImage,
    find_mistakes,
    image_grid,
    save_mistakes,
    score_images,
    sort_by_uncertainty,
    thumbnail,
)
from flowers.runs.predictions import Predictions
from flowers.runtime.text import read_csv


@pytest.fixture
def predictions() -> Predictions:
    """Return predictions for five images of class a: two mistakes, of which c.png is the more confident."""
    logits = torch.tensor([[3, 0], [0, 1], [0, 2], [0.5, 0], [1, 0]], dtype=torch.float64)
    paths = [f"{name}.png" for name in "abcde"]
    return Predictions(paths, torch.zeros(5, dtype=torch.int64), logits, ["a", "b"])


def test_score_images_returns_the_cross_entropy_of_the_calibrated_probability(predictions: Predictions):
    images = score_images(predictions)
    assert [image.path for image in images] == predictions.paths
    for image in images:
        true_probability = image.probability if image.true == image.predicted else 1 - image.probability
        assert image.loss == pytest.approx(-torch.tensor(true_probability).log().item(), abs=1e-5)


def test_find_mistakes_returns_only_mistakes_the_most_confident_first(predictions: Predictions):
    images = score_images(predictions)
    mistakes = find_mistakes(images)
    assert {image.path for image in mistakes} == {"b.png", "c.png"}
    assert mistakes[0].probability >= mistakes[1].probability


def test_sort_by_uncertainty_returns_all_images_the_least_confident_first(predictions: Predictions):
    probabilities = [image.probability for image in sort_by_uncertainty(score_images(predictions))]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities)


def test_save_mistakes_writes_a_row_per_mistake(predictions: Predictions, tmp_path: Path):
    images = score_images(predictions)
    save_mistakes(images, tmp_path / "mistakes.csv")
    with (tmp_path / "mistakes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "true", "predicted", "probability", "loss"]
    assert [row["path"] for row in rows] == [image.path for image in find_mistakes(images)]


def test_thumbnail_is_a_square_of_the_given_side(tmp_path: Path):
    Image.new("RGB", (30, 10), "red").save(tmp_path / "a.png")
    image = thumbnail(tmp_path, "a.png", 8)
    assert image.size == (8, 8)
    assert image.getpixel((4, 4)) == (255, 0, 0)


def test_image_grid_has_a_cell_for_every_image(predictions: Predictions, tmp_path: Path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")  # the other images are missing: gray squares
    grid = image_grid(tmp_path, score_images(predictions), columns=2)
    assert grid.dtype == torch.uint8
    side = grid.shape[2] // 2
    height = grid.shape[1] // 3
    assert grid.shape == (3, 3 * height, 2 * side)
    assert grid[:, side // 2, side // 2].tolist() == [255, 0, 0]
    assert grid[:, side // 2, side + side // 2].tolist() == [128, 128, 128]


def test_image_grid_captions_any_class_name(tmp_path: Path):
    names = ["\x1b[31m\r\udce9", "ж" * 300]
    row = ScoredImage("a.png", names[0], names[1], probability=0.5, loss=1.0)
    assert image_grid(tmp_path, [row]).min() == 0  # black letters


def test_save_mistakes_writes_names_that_read_back_and_run_no_formula(tmp_path: Path):
    names = ("=1+1", "a\r\x1b\udce9")
    save_mistakes([ScoredImage("-x,y.png", *names, probability=0.75, loss=2.0)], tmp_path / "mistakes.csv")
    assert read_csv(tmp_path / "mistakes.csv")[1] == ["-x,y.png", *names, "0.750000", "2.000000"]
    assert b"'=1+1" in (tmp_path / "mistakes.csv").read_bytes()
